"""What a stage tells whoever watches it: the one seam between the work and its display.

Every method does nothing here, so a stage can be called from Python in silence.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from timechat.records import Plan, StepRecord


class Watcher:
    """Told what happens; `cli.display` shows it."""

    def say(self, text: str) -> None:
        """One line of news."""

    def planned(self, plan: Plan) -> None:
        """The plan, before anything is trained."""

    def track(self, label: str, total: int) -> Callable[[int], None]:
        """A piece of work of `total` parts begins; the result is called with parts done."""
        return lambda done: None

    def stepped(self, record: StepRecord, total: int) -> None:
        """An optimizer step was done."""

    def validated(self, line: dict[str, Any]) -> None:
        """A validation: `step`, `validation_loss`, `validation_accuracy`, `samples`."""
