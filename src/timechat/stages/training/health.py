"""The health of a run: steps that are not finite, and losses that leap.

It judges and counts; skipping, rolling back and stopping are `learner`'s.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from timechat.store.files import read_lines

# Steps without a finite loss and gradient that are left out before the run is rolled back, and how
# often it is, each time with this share of its learning rate.
MAX_SKIPPED = 3
MAX_ROLLBACKS = 2
LOWER = 0.5
# A loss is a spike when it lies so many robust standard deviations above the median of the losses
# before it (1.4826 makes the median deviation one of the normal distribution), and well above.
WINDOW = 32
DEVIATIONS = 6.0
ABOVE = 1.3
# The learning rate has exploded when the loss of so many steps in a row lies so far above that of
# the first step, which was the base's own: no learning does that.
EXPLODED = 8
TIMES, NATS = 1.5, 1.0


@dataclass(slots=True)
class Health:
    """What is remembered from step to step; it travels in every checkpoint."""

    skipped: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    rollbacks: int = 0
    losses: list[float] = field(default_factory=list[float])
    # The first step's loss, and how many steps in a row have been far above it.
    first: float | None = None
    far: int = 0

    def skip(self, step: int, loss: float, norm: float, rows: list[str]) -> None:
        """Count a step that was not finite."""
        self.skipped.append({"step": step, "loss": str(loss), "norm": str(norm), "rows": rows})

    @property
    def may_skip(self) -> bool:
        return len(self.skipped) <= MAX_SKIPPED

    @property
    def has_exploded(self) -> bool:
        return self.far >= EXPLODED

    @property
    def may_roll_back(self) -> bool:
        return self.rollbacks < MAX_ROLLBACKS

    def watch(self, step: int, loss: float) -> str:
        """A sentence when `loss` is a spike, else nothing."""
        said = ""
        self.first = loss if self.first is None else self.first
        self.far = self.far + 1 if loss > TIMES * self.first + NATS else 0
        if len(self.losses) == WINDOW:
            usual = statistics.median(self.losses)
            spread = 1.4826 * statistics.median(abs(one - usual) for one in self.losses)
            if loss > usual + DEVIATIONS * spread and loss > ABOVE * usual:
                said = (
                    f"step {step}: loss {loss:.3f} is a spike; the {WINDOW} steps before it had "
                    f"{usual:.3f} ± {spread:.3f}"
                )
        self.losses = [*self.losses, loss][-WINDOW:]
        return said


def tell_skipped(run: Path) -> str:
    """A sentence for the report about steps that taught nothing; empty where all did."""
    rows = list(read_lines(run / "metrics.jsonl"))
    skipped = [str(row["step"]) for row in rows if "skipped" in row]
    if not skipped:
        return ""
    total = len(skipped) + sum("loss" in row for row in rows)
    which = f"step {skipped[0]}" if len(skipped) == 1 else f"steps {', '.join(skipped)}"
    return (
        f"{len(skipped)} of {total} steps taught nothing: {which} had no finite loss or gradient "
        "and went by without a change of the weights; history.jsonl names their rows"
    )
