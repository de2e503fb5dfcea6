"""Being asked to stop: a flag that work looks at where it may be left.

Who asks, a signal or a window, is for the outer floors.
"""

from __future__ import annotations

import signal
from collections.abc import Generator
from contextlib import contextmanager

from timechat.errors import StoppedError


class Stop:
    """Whether somebody asked to stop.

    `is_patient` while work under way finishes its micro-step and saves before it ends; outside of
    that there is nothing to save, and whoever asks may end the process at once.
    """

    def __init__(self) -> None:
        self.signum = 0
        self.is_patient = False

    def ask(self, signum: int = signal.SIGTERM) -> None:
        self.signum = signum

    def is_asked(self) -> bool:
        return self.signum != 0

    def check(self, message: str = "stopped") -> None:
        """Raise StoppedError when asked to stop."""
        if self.signum:
            raise StoppedError(message, self.signum)

    @contextmanager
    def patiently(self) -> Generator[None]:
        self.is_patient = True
        try:
            yield
        finally:
            self.is_patient = False
