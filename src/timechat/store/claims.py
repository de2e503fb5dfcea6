"""Who may write: one owner of a folder, and one writer of what is being made.

The kernel keeps the claim (flock) and gives it back when its holder dies, however it dies. What is
being written stands beside its target under a name with `MARK` in it, and its writer holds it, so
that what a killed process left there can be told from what is under way.
"""

from __future__ import annotations

import fcntl
import os
import platform
import secrets
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from timechat.errors import RunError

MARK = ".timechat-"
LOCK = ".lock"


@contextmanager
def owned(folder: Path) -> Generator[None]:
    """Be the only process that writes in `folder`, while the block runs.

    The kernel gives the lock back when its holder dies, however it dies. Raises RunError, naming
    the holder, when another process has it.
    """
    path = folder / LOCK
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(
                f"{folder} is in use by {_holder(handle)}: wait for it, or stop it first"
            ) from None
        os.ftruncate(handle, 0)
        os.write(handle, f"process {os.getpid()} on {platform.node()}".encode())
        yield
    finally:
        os.close(handle)


def is_owned(folder: Path) -> bool:
    """Whether a living process owns `folder`."""
    handle = hold(folder / LOCK)
    if handle is None:
        return (folder / LOCK).exists()
    os.close(handle)
    return False


def name_beside(path: Path, mark: str = "") -> Path:
    """A fresh name beside `path` for what is being written, or is gone."""
    return path.with_name(f".{path.name}{MARK}{mark}{secrets.token_hex(4)}")


def claim_beside(path: Path, is_folder: bool) -> tuple[Path, int]:
    """A new file or folder beside `path` and a handle that holds it, with the user's own umask."""
    while True:
        beside = name_beside(path)
        if is_folder:
            os.mkdir(beside)
        try:
            flags = os.O_RDONLY if is_folder else os.O_WRONLY | os.O_CREAT | os.O_EXCL
            handle = os.open(beside, flags, 0o666)
        except FileNotFoundError:
            continue  # another process swept it between the two calls
        fcntl.flock(handle, fcntl.LOCK_EX)
        if beside.exists():
            return beside, handle
        os.close(handle)


def hold(path: Path) -> int | None:
    """A handle that holds `path`, or None when another process does or it is gone."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle


def _holder(handle: int) -> str:
    return os.pread(handle, 200, 0).decode("utf-8", "replace").strip() or "another process"
