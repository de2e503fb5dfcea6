"""One leased job taken one stage further: its files checked and its cost planned, or trained.

The child knows nothing of jobs: what it leaves in the run directory is told to the ledger here.
While the ledger is out of reach the child goes on, and everything is told when it is back.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import yaml
from sqlalchemy.exc import SQLAlchemyError

from timechat.ledger.files import File, Files
from timechat.ledger.jobs import Event, Job
from timechat.ledger.leases import Held, Leases, LostLeaseError
from timechat.ledger.tables import new_id, now_ms
from timechat.planning.facts import GIB
from timechat.stages.jobs.events import RunEvents
from timechat.stages.jobs.job import (
    JobError,
    check_rows,
    find_checkpoints,
    read_metrics,
    summarise_plan,
    tell_report,
    tuned_name,
    write_recipe,
    write_results,
)
from timechat.stages.jobs.process import Lock, end, killed_by, last_words, running
from timechat.store.files import write_bytes, write_text

BEAT_S = 1.0
# How often a job is taken up again after its child was killed without having got further.
MAX_ATTEMPTS = 10
T = TypeVar("T")


class StoppedWorkError(Exception):
    """The worker ends, and the job goes on with another."""


@dataclass(frozen=True)
class Executor:
    """A job at the hands of one worker."""

    job: Job
    worker: str
    leases: Leases
    files: Files
    folder: Path
    command: tuple[str, ...]
    stopping: threading.Event
    say: Callable[[str], None]

    def run(self, lock: Lock) -> None:
        """Take the job a stage further. Raises LostLeaseError or StoppedWorkError."""
        try:
            if self.job.plan is None:
                self._prepare(lock)
            else:
                self._train(lock)
        except JobError as error:
            self._fail(error)
        except (LostLeaseError, StoppedWorkError):
            raise
        except Exception as error:
            self._fail(JobError(f"the worker failed: {error!r}", "server_error"))

    def _prepare(self, lock: Lock) -> None:
        """Check the files, work out the plan, and put the job back into the queue with it."""
        train, validation = self._rows()
        check_rows(train, "training_file")
        if validation is not None:
            check_rows(validation, "validation_file")
        validated = Event("validated", "Files validated, moving job to queued state")
        self._write(lambda held: (held.tell(validated), held.change(status="queued")))
        recipe = self.folder / "plan.yaml"
        write_text(recipe, yaml.safe_dump(write_recipe(self.job, train, validation)))
        command = [*self.command, "plan", str(recipe), "--json"]
        with running(command, self.folder, lock) as child:
            while (status := child.poll()) is None:
                self._beat(child)
        if status != 0:
            if killed_by(status) is None:
                raise self._reason(status, "invalid_plan")
            self._try_again(status, self.job.attempts + 1)
            return
        plan = summarise_plan(json.loads((self.folder / "stdout").read_text(encoding="utf-8")))
        gib = plan["memory_bytes"] / GIB
        text = f"Plan: {plan['steps']} steps in about {plan['train_seconds']} s, {gib:.2f} GiB"
        planned = Event("plan", text, {"plan": plan})
        self._write(lambda held: (held.tell(planned), held.let_go(plan=plan, attempts=0)))

    def _train(self, lock: Lock) -> None:
        train, validation = self._rows()
        recipe, run = self.folder / "recipe.yaml", self.folder / "run"
        if not recipe.is_file():
            write_text(recipe, yaml.safe_dump(write_recipe(self.job, train, validation)))
        begun = [Event("started", "Fine-tuning job started")]
        if self.job.started_ms is not None:
            begun.append(Event(new_id("again-"), "Continuing from the newest checkpoint"))
        started_ms = self.job.started_ms or now_ms()

        def begin(held: Held) -> None:
            for event in begun:
                held.tell(event)
            held.change(status="running", started_ms=started_ms)

        self._write(begin)
        events, behind = RunEvents(self.job, run), len(find_checkpoints(run))
        command = [*self.command, "train", str(recipe), "--out", str(run), "--json"]
        with running(command, self.folder, lock) as child:
            while (status := child.poll()) is None:
                self._beat(child, events)
        if status == 0:
            self._finish(run, events)
        elif killed_by(status) is None:
            raise self._reason(status, "training_failed")
        else:
            got_further = len(find_checkpoints(run)) > behind
            self._try_again(status, 1 if got_further else self.job.attempts + 1)

    def _beat(self, child: subprocess.Popen[bytes], events: RunEvents | None = None) -> None:
        """Wait a moment, renew the lease and tell what is new."""
        with suppress(subprocess.TimeoutExpired):
            child.wait(BEAT_S)
        if self.stopping.is_set():
            self._leave(child)
        try:
            with self.leases.held(self.job.id, self.worker) as held:
                if events is not None:
                    events.tell(held, is_over=False)
        except SQLAlchemyError as error:
            self._complain(error)
            if events is not None:
                events.forget()

    def _leave(self, child: subprocess.Popen[bytes]) -> None:
        """End the child and the lease: the next worker need not wait for either."""
        end(child)
        with suppress(SQLAlchemyError), self.leases.held(self.job.id, self.worker) as held:
            held.let_go()
        raise StoppedWorkError(self.job.id)

    def _try_again(self, status: int, attempts: int) -> None:
        number = killed_by(status)
        if attempts >= MAX_ATTEMPTS:
            raise JobError(
                f"killed {attempts} times (the last by signal {number}) without getting further; "
                "is there enough memory?",
                "server_error",
            )
        event = Event(new_id("killed-"), f"Training was killed (signal {number})", level="warn")
        self._write(lambda held: (held.tell(event), held.let_go(attempts=attempts)))

    def _finish(self, run: Path, events: RunEvents) -> None:
        """Everything that a finished job leaves, in one transaction."""
        rows = read_metrics(run)
        name = tuned_name(self.job)
        headline, report = tell_report(run)
        left = {
            "step_metrics.csv": write_results(rows).encode(),
            "report.json": (run / "report.json").read_bytes(),
        }
        tokens = sum(row.get("tokens", 0) for row in rows.values())

        def finish(held: Held) -> None:
            events.forget()
            events.tell(held, is_over=True)
            made = [self._result(held, called, content) for called, content in left.items()]
            held.add_model(name, self.job.project, str(run))
            held.tell(Event("report", headline, report))
            held.tell(Event("model", f"New fine-tuned model created: {name}"))
            held.tell(Event("done", "The job has successfully completed"))
            held.let_go(
                status="succeeded",
                fine_tuned_model=name,
                result_files=made,
                trained_tokens=tokens,
                finished_ms=now_ms(),
                finish_ms=None,
            )

        self._write(finish)
        self.say(f"{self.job.id}: {name}")

    def _result(self, held: Held, name: str, content: bytes) -> str:
        """One of the job's own files. Its id is always the same, so that a worker that is killed
        here leaves nothing but what the next one writes again."""
        own = hashlib.sha256(f"{self.job.id}/{name}".encode()).hexdigest()[:30]
        beside = self.files.folder / f".{self.job.id}-{name}"
        write_bytes(beside, content)
        digest = hashlib.sha256(content).hexdigest()
        file = File(
            f"file-{own}",
            self.job.project,
            name,
            "fine-tune-results",
            len(content),
            digest,
            now_ms(),
        )
        self.files.enter(held.connection, beside, file)
        return file.id

    def _fail(self, error: JobError) -> None:
        event = Event("failed", str(error), error.row, level="error")
        ending = {"error": error.row, "finished_ms": now_ms(), "finish_ms": None}
        self._write(lambda held: (held.tell(event), held.let_go(status="failed", **ending)))
        self.say(f"{self.job.id}: {error}")

    def _rows(self) -> tuple[Path, Path | None]:
        found: list[Path | None] = []
        for param in ("training_file", "validation_file"):
            name = getattr(self.job, param)
            if name is not None and self._read(name) is None:
                raise JobError(f"the {param} {name} was deleted", f"invalid_{param}", param)
            found.append(self.files.path(name) if name is not None else None)
        assert found[0] is not None
        return found[0], found[1]

    def _read(self, file: str) -> object:
        return self._patiently(lambda: self.files.get(self.job.project, file))

    def _write(self, action: Callable[[Held], T]) -> T:
        """One transaction about the job, tried until the ledger is in reach.

        An ending that was kept although nobody could say so comes back as a lost lease.
        """

        def write() -> T:
            with self.leases.held(self.job.id, self.worker) as held:
                return action(held)

        return self._patiently(write)

    def _patiently(self, action: Callable[[], T]) -> T:
        while True:
            try:
                return action()
            except SQLAlchemyError as error:
                self._complain(error)
            if self.stopping.wait(BEAT_S):
                raise StoppedWorkError(self.job.id)

    def _complain(self, error: SQLAlchemyError) -> None:
        self.say(f"{self.job.id}: the ledger is out of reach, trying again: {error}")

    def _reason(self, status: int, code: str) -> JobError:
        words = last_words(self.folder)
        if words.startswith("error: "):
            return JobError(words.removeprefix("error: "), code)
        return JobError(f"training ended with status {status}: {words}", "server_error")
