"""What the studio's routes share: the ledger, the queues, and the checkpoints opened on the way."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path

from fastapi import Request
from pydantic import BaseModel, ConfigDict

from timechat.errors import DataError
from timechat.ledger.annotation import Queue, open_queue
from timechat.ledger.database import LEDGER_FILE, Ledger, open_ledger
from timechat.serve.registry import Served
from timechat.serve.studio.earlier import Earlier
from timechat.serve.studio.lessons import Lessons
from timechat.stages.annotating.annotate import open_folder

# Where corrections of a model go that is no run and so has no folder of its own to keep them.
OTHERS = "corrections"


class Part(BaseModel):
    """What a page sends, or a part of it: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid")


@dataclass(frozen=True, slots=True)
class Desk:
    """Made once a server; `app.state.desk`. `ledger` keeps what belongs to no run."""

    ledger: Ledger
    earlier: Earlier
    lessons: Lessons = field(default_factory=Lessons)
    _queues: dict[Path, Queue] = field(default_factory=dict[Path, Queue])
    _opening: threading.Lock = field(default_factory=threading.Lock)

    def queue_of(self, model: Served) -> Queue:
        """The queue that `timechat annotate` opens for this model's run, or the common one."""
        run = run_of(model)
        return open_queue(self.ledger, OTHERS) if run is None else self.queue_at(run)

    def queue_at(self, run: Path) -> Queue:
        """The queue of a run."""
        run = run.resolve()
        with self._opening:
            if run not in self._queues:
                self._queues[run] = _open(run)
            return self._queues[run]


def _open(run: Path) -> Queue:
    """The run's queue, with its answers before and after to judge; without them where it was not
    evaluated to the end, since what people say in the chat is kept all the same."""
    try:
        return open_folder(run).queue
    except DataError:
        return open_queue(open_ledger(run / LEDGER_FILE), "own")


def desk_of(request: Request) -> Desk:
    return request.app.state.desk


def run_of(model: Served) -> Path | None:
    """The run's folder behind a served model, or None where it is none."""
    folder = model.details.get("run")
    return Path(folder) if folder else None
