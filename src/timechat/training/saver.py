"""Saving beside training: one checkpoint at a time is finished in a thread.

What is saved was copied between two steps (`checkpoint.begin_save`). A save that fails there is
raised where training next looks, at the latest before the next step: never in silence.
"""

from __future__ import annotations

import threading
from collections.abc import Callable


class Saver:
    """Finishes saves in the background, each after the one before it."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def finish_later(self, finish: Callable[[], object]) -> None:
        """Run `finish` beside what comes next. Raises what the save before it failed with."""
        self.wait()

        def work() -> None:
            try:
                finish()
            except BaseException as error:
                self._error = error

        # Not a daemon: an interpreter that ends by itself waits for the disk.
        self._thread = threading.Thread(target=work, name="saver")
        self._thread.start()

    def check(self) -> None:
        """Raise what a save in the background failed with."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def wait(self) -> None:
        """Wait for the save under way. Raises what it failed with."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()
