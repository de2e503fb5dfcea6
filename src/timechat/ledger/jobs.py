"""Fine-tuning jobs: made, found, steered, and a story of each that is told once.

An event has a key within its job, so telling it again after a crash changes nothing. Who works on
a job is for `leases`, what it does for `stages.jobs.worker`, how it looks to clients for
`serve.jobs`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, and_, case, insert, select, update

from timechat.errors import LedgerError
from timechat.ledger.database import Ledger
from timechat.ledger.paging import read_page
from timechat.ledger.tables import job_checkpoints, job_events, jobs, new_id, now_ms

OPEN = ("validating_files", "queued", "running")


@dataclass(frozen=True, slots=True)
class Job:
    """One job as its row tells it. `base` is the model's folder, `model` what clients call it."""

    id: str
    project: str
    model: str
    base: str
    training_file: str
    validation_file: str | None
    suffix: str
    seed: int
    hyperparameters: dict[str, Any]
    metadata: dict[str, str] | None
    status: str
    error: dict[str, Any] | None
    plan: dict[str, Any] | None
    fine_tuned_model: str | None
    result_files: list[str]
    trained_tokens: int | None
    is_paused: bool
    attempts: int
    worker: str | None
    created_ms: int
    started_ms: int | None
    finish_ms: int | None
    finished_ms: int | None

    @property
    def is_open(self) -> bool:
        return self.status in OPEN


@dataclass(frozen=True, slots=True)
class Event:
    """One line of a job's story. `key` names it within the job: it is told once."""

    key: str
    message: str
    data: dict[str, Any] | None = None
    level: str = "info"
    type: str = "message"
    id: str = ""
    created_ms: int = 0


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint that can be chatted with."""

    step: int
    model: str
    metrics: dict[str, float]
    folder: str = ""
    id: str = ""
    created_ms: int = 0


@dataclass(frozen=True)
class Jobs:
    """The jobs of a ledger."""

    ledger: Ledger

    def create(self, told: Sequence[Event] = (), **values: Any) -> Job:
        """A new job, waiting to be validated; `told` is said of it at once."""
        fresh: dict[str, Any] = {
            "id": new_id("ftjob-"),
            "status": "validating_files",
            "result_files": [],
            "is_paused": False,
            "attempts": 0,
            "lease_ms": 0,
            "created_ms": now_ms(),
        }
        with self.ledger.write() as connection:
            connection.execute(insert(jobs).values(**{**fresh, **values}))
            job = fresh["id"]
            tell(connection, job, Event("created", f"Created fine-tuning job: {job}"))
            tell(
                connection,
                job,
                Event("validating", f"Validating training file: {values['training_file']}"),
            )
            for event in told:
                tell(connection, job, event)
            return job_of(connection.execute(select(jobs).where(jobs.c.id == job)).one())

    def get(self, job: str, project: str | None = None) -> Job | None:
        """A job; of one project only, unless none is named."""
        theirs = jobs.c.id == job
        if project is not None:
            theirs = and_(theirs, jobs.c.project == project)
        with self.ledger.read() as connection:
            row = connection.execute(select(jobs).where(theirs)).first()
        return job_of(row) if row is not None else None

    def list(self, project: str | None = None) -> list[Job]:
        """Every job, newest first; of one project only, unless none is named."""
        query = select(jobs).order_by(jobs.c.seq.desc())
        if project is not None:
            query = query.where(jobs.c.project == project)
        with self.ledger.read() as connection:
            return [job_of(row) for row in connection.execute(query)]

    def page(
        self, project: str, after: str | None, limit: int
    ) -> tuple[Sequence[Job], bool] | None:
        """A page of a project's jobs, newest first; None for an unknown `after`."""
        page = read_page(self.ledger, jobs, [jobs.c.project == project], after, limit)
        return ([job_of(row) for row in page[0]], page[1]) if page is not None else None

    def events(
        self,
        job: str,
        after: str | None,
        limit: int,
        newest_first: bool = True,
        project: str | None = None,
    ) -> tuple[Sequence[Event], bool] | None:
        """A page of a job's events; None for an unknown `after`.

        With a `project`, another's job has none. One query, because clients ask it all the time.
        """
        theirs = [job_events.c.job == job]
        if project is not None:
            own = select(jobs.c.seq).where(jobs.c.id == job, jobs.c.project == project)
            theirs.append(own.exists())
        page = read_page(self.ledger, job_events, theirs, after, limit, newest_first)
        names = Event.__dataclass_fields__
        if page is None:
            return None
        return [Event(**{name: getattr(row, name) for name in names}) for row in page[0]], page[1]

    def checkpoints(
        self, job: str, after: str | None, limit: int
    ) -> tuple[Sequence[Checkpoint], bool] | None:
        """A page of a job's checkpoints, newest first; None for an unknown `after`."""
        theirs = [job_checkpoints.c.job == job]
        page = read_page(self.ledger, job_checkpoints, theirs, after, limit)
        if page is None:
            return None
        found = [
            Checkpoint(row.step, row.model, row.metrics, "", row.id, row.created_ms)
            for row in page[0]
        ]
        return found, page[1]

    def cancel(self, job: str) -> Job:
        """End an open job. Raises LedgerError for one that has ended."""
        ending = {"status": "cancelled", "finished_ms": now_ms(), "finish_ms": None}
        event = Event("cancelled", "The job was cancelled", level="warn")
        return self._steer(job, event, {**ending, "worker": None, "lease_ms": 0})

    def pause(self, job: str) -> Job:
        """Let an open job wait, from its newest checkpoint on, until it is resumed."""
        change: dict[str, Any] = {
            "is_paused": True,
            "worker": None,
            "lease_ms": 0,
            "finish_ms": None,
            "status": case((jobs.c.status == "running", "queued"), else_=jobs.c.status),
        }
        return self._steer(job, Event("", "The job was paused"), change, is_paused=False)

    def resume(self, job: str) -> Job:
        return self._steer(
            job, Event("", "The job was resumed"), {"is_paused": False}, is_paused=True
        )

    def _steer(
        self, job: str, event: Event, change: dict[str, Any], is_paused: bool | None = None
    ) -> Job:
        with self.ledger.write() as connection:
            found = job_of(connection.execute(select(jobs).where(jobs.c.id == job)).one())
            if not found.is_open:
                raise LedgerError(f"the job {job} is over ({found.status}) and cannot be changed")
            if is_paused is not None and found.is_paused != is_paused:
                raise LedgerError(f"the job {job} is {'not ' * is_paused}paused")
            connection.execute(update(jobs).where(jobs.c.id == job).values(**change))
            tell(connection, job, event)
            return job_of(connection.execute(select(jobs).where(jobs.c.id == job)).one())


def tell(connection: Connection, job: str, event: Event) -> None:
    """Add an event, unless it was told; an event without a key is told each time."""
    key = event.key or new_id("")
    known = select(job_events.c.seq).where(job_events.c.job == job, job_events.c.key == key)
    if connection.scalar(known) is None:
        connection.execute(
            insert(job_events).values(
                id=new_id("ftevent-"),
                job=job,
                key=key,
                level=event.level,
                type=event.type,
                message=event.message,
                data=event.data,
                created_ms=now_ms(),
            )
        )


def job_of(row: Any) -> Job:
    return Job(**{name: getattr(row, name) for name in Job.__dataclass_fields__})
