"""A child process that ends when its parent does, however that ended.

The parent names itself in the child's environment, the child watches it. On Linux the kernel tells
of its death at once (pidfd_open(2)); elsewhere the child looks once a second. The process is
watched, not the thread that started the child, which is what prctl's PR_SET_PDEATHSIG would do.
What ending means, at once or after saving, is the child's own.

    python -m timechat.parent MODULE [argument…]      run a module that knows nothing of this
"""

from __future__ import annotations

import os
import runpy
import select
import signal
import sys
import threading
import time
from collections.abc import Callable

PARENT = "TIMECHAT_PARENT"
LOOK_S = 1.0


def child_environment() -> dict[str, str]:
    """This process's environment for a child that is to end with it."""
    return {**os.environ, PARENT: str(os.getpid())}


def die_with_parent() -> None:
    """End at once, whatever is under way, when the process that named itself here is gone."""
    follow(lambda: os.kill(os.getpid(), signal.SIGKILL))


def follow(end: Callable[[], None]) -> None:
    """Call `end`, in another thread, once the process that named itself here is gone.

    Does nothing where none did. Children of this process do not inherit the name.
    """
    named = os.environ.pop(PARENT, "")
    if named.isdigit():
        threading.Thread(target=_watch, args=(int(named), end), name="parent", daemon=True).start()


def _watch(pid: int, end: Callable[[], None]) -> None:
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        end()
        return
    except (AttributeError, OSError):  # not Linux, an old kernel, or forbidden
        _look(pid)
    else:
        waiter = select.poll()
        waiter.register(handle, select.POLLIN)
        waiter.poll()
        os.close(handle)
    end()


def _look(pid: int) -> None:
    """Return once the process is gone. One that nobody waits for still has its number, but its
    children have another parent."""
    first = os.getppid()
    while os.getppid() == first:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        except PermissionError:
            pass  # another user's by now, and alive
        time.sleep(LOOK_S)


if __name__ == "__main__":
    die_with_parent()
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
