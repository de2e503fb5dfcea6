"""Who works on which job: each is leased to one worker, and written about only by its holder.

A lease runs out when its holder stops renewing it; a worker that finds out that another is dead may
release what that one held at once. What is done with a job is `stages.jobs.worker`'s.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, and_, delete, insert, not_, or_, select, update

from timechat.ledger.database import Ledger
from timechat.ledger.jobs import OPEN, Checkpoint, Event, Job, job_of, tell
from timechat.ledger.models import TunedModel, add_model, remove_model
from timechat.ledger.tables import job_checkpoints, jobs, new_id, now_ms

LEASE_MS = 30_000


class LostLeaseError(Exception):
    """The worker does not hold the job any more: it was cancelled, paused or taken over."""


@dataclass(frozen=True)
class Leases:
    """The leases of a ledger's jobs."""

    ledger: Ledger

    def claim(
        self,
        worker: str,
        *,
        is_planned: bool,
        memory_bytes: int | None = None,
        running: Collection[str] = (),
    ) -> Job | None:
        """Lease the oldest open job with (or without) a plan to `worker`; None when there is none.

        A planned job waits until its bytes fit beside those already leased; alone it may always
        try. None for `memory_bytes` is no bound. `running` are jobs that this worker has at hand,
        whatever became of their leases.
        """
        now = now_ms()
        # One of its own that it has not at hand was leased by a call whose answer got lost.
        others = and_(jobs.c.lease_ms > now, jobs.c.worker != worker)
        is_busy = or_(others, jobs.c.id.in_(running))
        with self.ledger.write() as connection:
            open_jobs = select(jobs).where(jobs.c.status.in_(OPEN)).order_by(jobs.c.seq)
            used = sum(
                _plan_bytes(row.plan) for row in connection.execute(open_jobs.where(is_busy))
            )
            for row in connection.execute(open_jobs.where(not_(is_busy), ~jobs.c.is_paused)).all():
                if (row.plan is not None) != is_planned:
                    continue
                needed = _plan_bytes(row.plan)
                if memory_bytes is None or not used or used + needed <= memory_bytes:
                    mine = jobs.c.id == row.id
                    lease = {"worker": worker, "lease_ms": now + LEASE_MS}
                    connection.execute(update(jobs).where(mine).values(**lease))
                    return job_of(connection.execute(select(jobs).where(mine)).one())
        return None

    def release(self, workers: Iterable[str]) -> None:
        """Let go of everything that these workers held: they are dead."""
        with self.ledger.write() as connection:
            theirs = and_(jobs.c.worker.in_(list(workers)), jobs.c.status.in_(OPEN))
            connection.execute(update(jobs).where(theirs).values(worker=None, lease_ms=0))

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


@dataclass(frozen=True)
class Held:
    """What may be written about a held job, all in one transaction."""

    connection: Connection
    job: str

    def tell(self, event: Event) -> None:
        tell(self.connection, self.job, event)

    def change(self, **values: Any) -> None:
        self.connection.execute(update(jobs).where(jobs.c.id == self.job).values(**values))

    def let_go(self, **values: Any) -> None:
        """The last word on a job for now: the lease ends with it."""
        self.change(worker=None, lease_ms=0, **values)

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

    def drop_checkpoints(self, kept: int) -> list[int]:
        """Forget all but the newest `kept` checkpoints and their names; the steps forgotten."""
        theirs = job_checkpoints.c.job == self.job
        newest_first = select(job_checkpoints).where(theirs).order_by(job_checkpoints.c.step.desc())
        old = self.connection.execute(newest_first.offset(kept)).all()
        steps = [row.step for row in old]
        self.connection.execute(
            delete(job_checkpoints).where(theirs, job_checkpoints.c.step.in_(steps))
        )
        for row in old:
            remove_model(self.connection, row.model)
        return steps

    def add_model(self, name: str, project: str, folder: str, is_listed: bool = True) -> None:
        made = TunedModel(name, project, self.job, folder, is_listed, now_ms())
        add_model(self.connection, made)


def _plan_bytes(plan: dict[str, Any] | None) -> int:
    return int(plan["memory_bytes"]) if plan else 0
