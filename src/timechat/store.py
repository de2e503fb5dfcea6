"""A run directory of plain files: atomic writes, append-only JSON lines, SHA-256, one owner.

It knows how to put bytes on a disk so that nothing half-written looks finished, and how to take
them away so that nothing half-deleted does. What the files mean is for their writers.

What is being written stands beside its target under a name with `MARK` in it, and its writer holds
it (flock), so that what a killed process left there can be told from what is under way.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from timechat.errors import RunError

MARK = ".timechat-"
LOCK = ".lock"
OS_ERROR = re.compile(r"\(os error (\d+)\)")
# Of what is being replaced and has lost its name for a moment.
OLD = "old-"


def to_json(value: Any) -> Any:
    """`value` with dataclasses as mappings, paths as strings and sets sorted."""
    if is_dataclass(value) and not isinstance(value, type):
        return to_json(asdict(value))
    if isinstance(value, dict):
        return {str(key): to_json(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(inner) for inner in value]
    if isinstance(value, Path):
        return str(value)
    return value


def write_text(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old content or the new, never a part."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside, handle = _claim_beside(path, is_folder=False)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(to_json(value), ensure_ascii=False, indent=2) + "\n")


def write_lines(path: Path, rows: Iterable[Any]) -> None:
    write_text(path, "".join(_line(row) for row in rows))


def append_rows(path: Path, rows: Iterable[Any]) -> None:
    """Add JSON lines one by one, however many there are, in a folder that is still being built."""
    with path.open("a", encoding="utf-8") as file:
        file.writelines(map(_line, rows))


def append_line(path: Path, row: Any) -> None:
    """Add one JSON line, in place of a last line that a killed process or a full disk tore."""
    with path.open("ab+") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - 1))
        if end and file.read(1) != b"\n":
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
        file.write(_line(row).encode("utf-8"))


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(f"{path} is missing") from None
    except ValueError as error:
        raise RunError(f"{path} is not readable JSON: {error}") from None


def read_lines(path: Path) -> Iterator[Any]:
    """The rows of our own JSON lines file; a last line without its newline was torn and is left."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.endswith("\n"):
                yield json.loads(line)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_file(path: Path) -> None:
    """Make the file's content durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_folder(folder: Path) -> None:
    """Make the folder's entries durable: fsync of the directory itself."""
    sync_file(folder)


def sync_tree(folder: Path) -> None:
    """Make everything below `folder` durable, the entries after what they name."""
    for place, _, names in os.walk(folder, topdown=False):
        for name in names:
            if not os.path.islink(os.path.join(place, name)):
                sync_file(Path(place, name))
        sync_folder(Path(place))


class Draft:
    """A folder that is filled beside `target` and appears there whole, or not at all."""

    def __init__(self, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        sweep(target.parent)
        self.target = target
        self.folder, self._handle = _claim_beside(target, is_folder=True)

    def commit(self) -> None:
        """Make it durable, then give it its name; what had the name before is replaced."""
        _share(self.folder)
        sync_tree(self.folder)
        if self.target.exists():
            _replace(self.target, self.folder)
        else:
            os.rename(self.folder, self.target)
        sync_folder(self.target.parent)
        self._release()

    def drop(self) -> None:
        """Take back what was written."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._release()

    def _release(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
        self._handle = -1


@contextmanager
def build_folder(target: Path) -> Generator[Path]:
    """A folder that appears at `target` only when the block ends well.

    Yields a sibling to fill; renames it at the end, and removes it when the block raises.
    """
    draft = Draft(target)
    try:
        with system_errors(target):
            yield draft.folder
        draft.commit()
    except BaseException:
        draft.drop()
        raise


@contextmanager
def system_errors(place: Path) -> Generator[None]:
    """Make the OSError of it again that a library written in Rust tells as an error of its own."""
    try:
        yield
    except Exception as error:
        found = None if isinstance(error, OSError) else OS_ERROR.search(str(error))
        if found is None:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1])), str(place)) from error


def remove_folder(folder: Path) -> None:
    """Delete a folder so that a kill on the way leaves no part of it under its name."""
    shutil.rmtree(_hide(folder))


def sweep(folder: Path) -> None:
    """Delete what killed processes left half-written or half-deleted directly in `folder`, and
    give its name back to what one was about to replace."""
    for path in sorted(folder.glob(f".*{MARK}*")):
        handle = _hold(path)
        if handle is None:
            continue  # its writer is at work
        name, _, suffix = path.name[1:].rpartition(MARK)
        try:
            if suffix.startswith(OLD) and not (folder / name).exists():
                os.rename(path, folder / name)
            elif path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        finally:
            os.close(handle)


def sweep_run(run: Path) -> None:
    """`sweep` every folder of a run."""
    for place, _, _ in os.walk(run):
        sweep(Path(place))


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
    handle = _hold(folder / LOCK)
    if handle is None:
        return (folder / LOCK).exists()
    os.close(handle)
    return False


def size_of(folder: Path) -> int:
    """Bytes of all files below `folder`; links count for nothing."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            found = os.lstat(os.path.join(place, name))
            total += 0 if os.path.islink(os.path.join(place, name)) else found.st_size
    return total


def _claim_beside(path: Path, is_folder: bool) -> tuple[Path, int]:
    """A new file or folder beside `path` and a handle that holds it, with the user's own umask."""
    while True:
        beside = path.with_name(f".{path.name}{MARK}{secrets.token_hex(4)}")
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


def _hold(path: Path) -> int | None:
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


def _replace(target: Path, fresh: Path) -> None:
    """Give `fresh` the name of `target`, which goes.

    That takes two renames. A kill between them leaves no name on half a folder, and `sweep` gives
    the old one its name back; it is held meanwhile, so that nobody's sweep does so now.
    """
    handle = _hold(target)
    old = _hide(target, OLD)
    try:
        os.rename(fresh, target)
    except BaseException:
        os.rename(old, target)
        raise
    finally:
        if handle is not None:
            os.close(handle)
    gone = target.with_name(f".{target.name}{MARK}{secrets.token_hex(4)}")
    os.rename(old, gone)
    shutil.rmtree(gone, ignore_errors=True)


def _hide(folder: Path, mark: str = "") -> Path:
    """Rename `folder` to a name under which it counts as gone."""
    hidden = folder.with_name(f".{folder.name}{MARK}{mark}{secrets.token_hex(4)}")
    os.rename(folder, hidden)
    return hidden


def _share(folder: Path) -> None:
    """Give every file the user's own umask: safetensors writes files that only he can read."""
    mode = folder.stat().st_mode & 0o666
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(mode)


def _holder(handle: int) -> str:
    return os.pread(handle, 200, 0).decode("utf-8", "replace").strip() or "another process"


def _line(row: Any) -> str:
    return json.dumps(to_json(row), ensure_ascii=False) + "\n"
