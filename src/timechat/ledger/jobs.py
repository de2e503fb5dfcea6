"""Fine-tuning jobs: a queue that no job leaves twice, and a story of each that is told once.

A worker holds a job by a lease that it renews; what it writes is kept only while it holds it. An
event has a key within its job, so telling it again after a crash changes nothing. What a job does
is `stages.worker`'s; how it looks to clients is `serve.jobs`'.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, and_, insert, select, update

from timechat.errors import LedgerError
from timechat.ledger.database import Ledger
from timechat.ledger.tables import (
    job_checkpoints,
    job_events,
    jobs,
    new_id,
    now_ms,
    tuned_models,
)

OPEN = ("validating_files", "queued", "running")
LEASE_MS = 30_000


class LostLeaseError(Exception):
    """The worker does not hold the job any more: it was cancelled, paused or taken over."""


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


@dataclass(frozen=True, slots=True)
class TunedModel:
    """A model that a job made; checkpoints are models too, and not listed."""

    name: str
    project: str
    job: str
    folder: str
    is_listed: bool
    created_ms: int


@dataclass(frozen=True)
class Jobs:
    """The jobs of a ledger."""

    ledger: Ledger

    def create(self, **values: Any) -> Job:
        """A new job, waiting to be validated."""
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
            _tell(connection, job, Event("created", f"Created fine-tuning job: {job}"))
            _tell(
                connection,
                job,
                Event("validating", f"Validating training file: {values['training_file']}"),
            )
            return _job(connection.execute(select(jobs).where(jobs.c.id == job)).one())

    def get(self, job: str, project: str | None = None) -> Job | None:
        """A job; of one project only, unless none is named."""
        theirs = jobs.c.id == job
        if project is not None:
            theirs = and_(theirs, jobs.c.project == project)
        with self.ledger.read() as connection:
            row = connection.execute(select(jobs).where(theirs)).first()
        return _job(row) if row is not None else None

    def list(self, project: str | None = None) -> list[Job]:
        """Every job, newest first; of one project only, unless none is named."""
        query = select(jobs).order_by(jobs.c.seq.desc())
        if project is not None:
            query = query.where(jobs.c.project == project)
        with self.ledger.read() as connection:
            return [_job(row) for row in connection.execute(query)]

    def events(
        self, job: str, after: str | None, limit: int, newest_first: bool = True
    ) -> tuple[Sequence[Event], bool] | None:
        """A page of a job's events; None for an unknown `after`."""
        rows = self._page(job_events, job, after, limit, newest_first)
        if rows is None:
            return None
        names = Event.__dataclass_fields__
        found = [Event(**{name: getattr(row, name) for name in names}) for row in rows]
        return found[:limit], len(found) > limit

    def checkpoints(
        self, job: str, after: str | None, limit: int
    ) -> tuple[Sequence[Checkpoint], bool] | None:
        """A page of a job's checkpoints, newest first; None for an unknown `after`."""
        rows = self._page(job_checkpoints, job, after, limit, True)
        if rows is None:
            return None
        found = [
            Checkpoint(row.step, row.model, row.metrics, "", row.id, row.created_ms) for row in rows
        ]
        return found[:limit], len(found) > limit

    def _page(
        self, table: Any, job: str, after: str | None, limit: int, newest_first: bool
    ) -> Sequence[Any] | None:
        with self.ledger.read() as connection:
            conditions = [table.c.job == job]
            if after is not None:
                place = connection.scalar(
                    select(table.c.seq).where(table.c.job == job, table.c.id == after)
                )
                if place is None:
                    return None
                conditions.append(table.c.seq < place if newest_first else table.c.seq > place)
            order = table.c.seq.desc() if newest_first else table.c.seq
            query = select(table).where(*conditions).order_by(order).limit(limit + 1)
            return connection.execute(query).all()

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
        }
        found = self.get(job)
        if found is not None and found.status == "running":
            change["status"] = "queued"
        return self._steer(job, Event("", "The job was paused"), change, is_paused=False)

    def resume(self, job: str) -> Job:
        return self._steer(
            job, Event("", "The job was resumed"), {"is_paused": False}, is_paused=True
        )

    def _steer(
        self, job: str, event: Event, change: dict[str, Any], is_paused: bool | None = None
    ) -> Job:
        with self.ledger.write() as connection:
            found = _job(connection.execute(select(jobs).where(jobs.c.id == job)).one())
            if not found.is_open:
                raise LedgerError(f"the job {job} has {found.status} and cannot be changed")
            if is_paused is not None and found.is_paused != is_paused:
                raise LedgerError(f"the job {job} is {'not ' * is_paused}paused")
            connection.execute(update(jobs).where(jobs.c.id == job).values(**change))
            _tell(connection, job, event)
            return _job(connection.execute(select(jobs).where(jobs.c.id == job)).one())

    def claim(self, worker: str, memory_bytes: int | None, others: int) -> Job | None:
        """Lease the oldest job that may run now to `worker`; None when there is none.

        A job whose plan is known waits until its bytes fit beside those already leased (`others`
        is how many jobs this worker runs); alone it may always try. None for `memory_bytes` is no
        bound.
        """
        now = now_ms()
        with self.ledger.write() as connection:
            held = connection.execute(
                select(jobs).where(jobs.c.status.in_(OPEN), jobs.c.lease_ms > now)
            )
            used = sum(_plan_bytes(row.plan) for row in held)
            waiting = connection.execute(
                select(jobs)
                .where(jobs.c.status.in_(OPEN), jobs.c.lease_ms <= now, ~jobs.c.is_paused)
                .order_by(jobs.c.seq)
            )
            for row in waiting:
                fits = memory_bytes is None or used + _plan_bytes(row.plan) <= memory_bytes
                if fits or not (used or others):
                    connection.execute(
                        update(jobs)
                        .where(jobs.c.id == row.id)
                        .values(worker=worker, lease_ms=now + LEASE_MS)
                    )
                    return _job(connection.execute(select(jobs).where(jobs.c.id == row.id)).one())
        return None

    @contextmanager
    def held(self, job: str, worker: str) -> Generator[Held]:
        """A transaction in which `worker` writes about a job that it holds, its lease renewed.

        Raises LostLeaseError when it does not hold it any more.
        """
        with self.ledger.write() as connection:
            mine = and_(jobs.c.id == job, jobs.c.worker == worker, jobs.c.status.in_(OPEN))
            renewed = connection.execute(
                update(jobs).where(mine).values(lease_ms=now_ms() + LEASE_MS)
            )
            if not renewed.rowcount:
                raise LostLeaseError(job)
            yield Held(connection, job)

    def model(self, name: str, project: str) -> TunedModel | None:
        with self.ledger.read() as connection:
            row = connection.execute(
                select(tuned_models).where(_living(project), tuned_models.c.name == name)
            ).first()
        return _model(row) if row is not None else None

    def models(self, project: str) -> Sequence[TunedModel]:
        """The project's listed models, in the order in which they were made."""
        query = select(tuned_models).where(_living(project), tuned_models.c.is_listed)
        with self.ledger.read() as connection:
            return [_model(row) for row in connection.execute(query.order_by(tuned_models.c.seq))]

    def remove_model(self, name: str, project: str) -> bool:
        """Take a tuned model's name away; the run and its files stay. Whether it was there."""
        with self.ledger.write() as connection:
            return bool(
                connection.execute(
                    update(tuned_models)
                    .where(_living(project), tuned_models.c.name == name)
                    .values(deleted_ms=now_ms())
                ).rowcount
            )


@dataclass(frozen=True)
class Held:
    """What may be written about a held job, all in one transaction."""

    connection: Connection
    job: str

    def tell(self, event: Event) -> None:
        _tell(self.connection, self.job, event)

    def change(self, **values: Any) -> None:
        self.connection.execute(update(jobs).where(jobs.c.id == self.job).values(**values))

    def add_checkpoint(self, project: str, checkpoint: Checkpoint) -> None:
        """A checkpoint that can be chatted with; one that is known already is left."""
        known = self.connection.scalar(
            select(job_checkpoints.c.seq).where(
                job_checkpoints.c.job == self.job, job_checkpoints.c.step == checkpoint.step
            )
        )
        if known is None:
            self.connection.execute(
                insert(job_checkpoints).values(
                    id=new_id("ftckpt_"),
                    job=self.job,
                    step=checkpoint.step,
                    model=checkpoint.model,
                    metrics=checkpoint.metrics,
                    created_ms=now_ms(),
                )
            )
            self.add_model(checkpoint.model, project, checkpoint.folder, is_listed=False)

    def add_model(self, name: str, project: str, folder: str, is_listed: bool = True) -> None:
        known = select(tuned_models.c.seq).where(tuned_models.c.name == name)
        if self.connection.scalar(known) is None:
            self.connection.execute(
                insert(tuned_models).values(
                    name=name,
                    project=project,
                    job=self.job,
                    folder=folder,
                    is_listed=is_listed,
                    created_ms=now_ms(),
                )
            )


def _tell(connection: Connection, job: str, event: Event) -> None:
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


def _plan_bytes(plan: dict[str, Any] | None) -> int:
    return int(plan["memory_bytes"]) if plan else 0


def _living(project: str) -> Any:
    return and_(tuned_models.c.project == project, tuned_models.c.deleted_ms.is_(None))


def _job(row: Any) -> Job:
    return Job(**{name: getattr(row, name) for name in Job.__dataclass_fields__})


def _model(row: Any) -> TunedModel:
    return TunedModel(**{name: getattr(row, name) for name in TunedModel.__dataclass_fields__})
