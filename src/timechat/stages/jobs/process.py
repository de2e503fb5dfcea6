"""A job's child process: found again whoever started it, never two at once, ended when asked.

Two files in the job's folder do it. `lock` is held by every process that inherited it, so it is
free only when the child is gone; `child.pid` is written by the child itself before it becomes what
it is, so that whoever waits for the lock knows whom to end. What the child does is its caller's.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from timechat.parent import child_environment

# How long a child may take to end when it is asked to.
GRACE_S = 20.0
# The shell writes its own number and turns into the command, which keeps that number.
_NAMED = ("/bin/sh", "-c", 'echo $$ > "$0" && exec "$@"')


class Lock:
    """An exclusive lock, held for as long as any process has `handle` open."""

    def __init__(self, handle: int) -> None:
        self.handle = handle

    def close(self) -> None:
        """Let go of it here; a second time does nothing."""
        handle, self.handle = self.handle, -1
        if handle >= 0:
            os.close(handle)


def try_lock(path: Path) -> Lock | None:
    """The lock of that file, made where it is missing; None while any process holds it."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    return Lock(handle)


def take_lock(folder: Path) -> Lock | None:
    """The job's lock, once its former child is gone.

    A child whose worker died saves and ends by itself (`timechat.parent`); asking it again would
    end it before it has saved. One that takes too long is killed. None where that frees nothing.
    """
    started = time.monotonic()
    while (lock := try_lock(folder / "lock")) is None:
        waited = time.monotonic() - started
        if waited > 2 * GRACE_S:
            return None
        pid = _find_orphan(folder)
        if pid is not None and waited > GRACE_S:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)
    return lock


@contextmanager
def running(command: Sequence[str], folder: Path, lock: Lock) -> Generator[subprocess.Popen[bytes]]:
    """A child that inherits the job's lock, in a session of its own, so that Ctrl-C at the server
    does not reach it. It is ended with the block, and ends by itself when this process is killed;
    what it says is in `stdout` and `stderr`."""
    named = folder / "child.pid"
    named.unlink(missing_ok=True)
    try:
        with (folder / "stdout").open("wb") as out, (folder / "stderr").open("wb") as err:
            child = subprocess.Popen(
                [*_NAMED, str(named), *command],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
                pass_fds=(lock.handle,),
                env=child_environment(),
            )
    finally:
        lock.close()  # from here on only the child holds it
    try:
        yield child
    finally:
        end(child)


def end(child: subprocess.Popen[bytes]) -> None:
    """End a child: asked first, then made to."""
    if child.poll() is not None:
        return
    with suppress(ProcessLookupError):
        child.terminate()
    try:
        child.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def killed_by(status: int) -> int | None:
    """The signal that ended a child, told by the kernel or, politely, by the child; else None."""
    if status < 0:
        return -status
    return status - 128 if status in (128 + signal.SIGINT, 128 + signal.SIGTERM) else None


def last_words(folder: Path) -> str:
    """What the child said was wrong; its last line where it said no such thing."""
    said = (folder / "stderr").read_text(encoding="utf-8", errors="replace").splitlines()
    told = [line for line in said if line.startswith("error: ")]
    if told:
        return told[-1]
    return said[-1] if said else "nothing was said"


def _find_orphan(folder: Path) -> int | None:
    """The process that `folder` names, if it still is what it was."""
    with suppress(OSError, ValueError):
        pid = int((folder / "child.pid").read_text())
        command = Path(f"/proc/{pid}/cmdline")
        if not Path("/proc/self").exists() or folder.name.encode() in command.read_bytes():
            return pid
    return None
