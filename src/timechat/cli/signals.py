"""SIGTERM and Ctrl-C: once asks, twice ends.

Where work is patient (`stages.stop`), the first signal lets it finish its micro-step and save, and
the second ends the process at once, even inside a long computation: a thread hears of it through a
pipe that the kernel's own handler writes to. Elsewhere there is nothing to save, and the first
signal ends the command. A command that another process of ours started takes the death of that
process for a SIGTERM.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from typing import Any

from timechat.parent import follow
from timechat.stages.stop import Stop

STOP = Stop()
_LISTENER = "signals"
_ASKED = b"finishing this step, then saving; once more stops at once\n"


def install() -> None:
    """Answer SIGTERM and Ctrl-C as this program promises. Only in the main thread."""
    if not any(thread.name == _LISTENER for thread in threading.enumerate()):
        hears, tells = socket.socketpair()
        tells.setblocking(False)
        signal.set_wakeup_fd(tells.fileno(), warn_on_full_buffer=False)
        # The sockets live as long as the thread, which ends with the process.
        threading.Thread(target=_listen, args=(hears, tells), name=_LISTENER, daemon=True).start()
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGINT, _end)
    follow(lambda: os.kill(os.getpid(), signal.SIGTERM))


def _listen(hears: socket.socket, _: socket.socket) -> None:
    while heard := hears.recv(1):
        number = heard[0]
        if number not in (signal.SIGTERM, signal.SIGINT):
            continue
        if STOP.is_asked():
            os._exit(128 + number)
        if STOP.is_patient:
            STOP.ask(number)
            os.write(2, _ASKED)


def _end(number: int, _: Any) -> None:
    """Runs in the main thread between two of its instructions."""
    if STOP.is_patient or STOP.is_asked():
        return
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(128 + number)
