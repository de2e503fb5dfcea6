"""What a stage is doing right now, in a file that a page can read: `RUN/learned/progress.json`.

The file is there while the work is, and says whose it is; one that a killed process left behind is
told by the run's lock (`store.is_owned`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from timechat.errors import RunError
from timechat.records import Plan, StepRecord
from timechat.stages.watch import Watcher
from timechat.store.files import read_json, write_json

PROGRESS = "progress.json"
EVERY_S = 0.5


class Told(Watcher):
    """Passes everything on to another watcher, and keeps the file up to date."""

    def __init__(self, folder: Path, other: Watcher) -> None:
        self.file, self.other = folder / PROGRESS, other
        self._written = 0.0
        self._now: dict[str, Any] = {"doing": "beginning", "done": 0, "of": 0}
        self._began = time.time()

    def __enter__(self) -> Told:
        self._write()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.file.unlink(missing_ok=True)

    def say(self, text: str) -> None:
        self.other.say(text)

    def planned(self, plan: Plan) -> None:
        self.other.planned(plan)

    def track(self, label: str, total: int) -> Callable[[int], None]:
        tick = self.other.track(label, total)
        self._now = {"doing": label, "done": 0, "of": total}
        self._write()

        def both(done: int) -> None:
            tick(done)
            self._now["done"] += done
            self._write_sometimes()

        return both

    def stepped(self, record: StepRecord, total: int) -> None:
        self.other.stepped(record, total)
        self._now = {"doing": "learning", "done": record.step, "of": total, "loss": record.loss}
        self._write_sometimes()

    def validated(self, line: dict[str, Any]) -> None:
        self.other.validated(line)

    def _write_sometimes(self) -> None:
        if time.monotonic() - self._written > EVERY_S or self._now["done"] == self._now["of"]:
            self._write()

    def _write(self) -> None:
        self._written = time.monotonic()
        write_json(self.file, {**self._now, "process": os.getpid(), "began": self._began})


def read_progress(folder: Path) -> dict[str, Any] | None:
    """What is being done below `folder`, or None where nothing is."""
    try:
        return read_json(folder / PROGRESS)
    except RunError:  # gone, or going at this moment
        return None
