"""The loop: `for record in fit(...)`. One step a turn; it touches no files and prints nothing.

Saving, logging, validating, stopping and showing are its consumers' business, done between two
steps. What a step does is `trainer`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from timechat.data.pack import Batch
from timechat.records import StepRecord
from timechat.training.trainer import Trainer


def fit(
    trainer: Trainer,
    steps: Sequence[Callable[[], tuple[Batch, ...]]],
    is_stopping: Callable[[], bool] = lambda: False,
) -> Iterator[StepRecord]:
    """Yield a record after each step that is still to do. `steps` builds each step's rows."""
    trainer.model.train()
    while trainer.step < len(steps):
        yield trainer.advance(steps[trainer.step](), is_stopping)
