"""The worker: jobs from the ledger, one child process each, that nothing can lose or run twice.

The child is `timechat train` and knows nothing of jobs; the worker reads what it leaves in the run
directory and tells it in the ledger. Two things keep a job from running twice: the ledger's lease,
which a dead worker stops renewing, and a lock file that the child inherits, which is free only when
the child is gone. Whatever is killed, the next worker goes on from the newest checkpoint.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from sqlalchemy.exc import DBAPIError

from timechat.ledger.database import Ledger
from timechat.ledger.files import Files, open_files
from timechat.ledger.jobs import Checkpoint, Event, Held, Job, Jobs, LostLeaseError
from timechat.ledger.tables import now_ms
from timechat.parent import child_environment
from timechat.stages.jobs import (
    JobError,
    check_rows,
    checkpoint_name,
    find_checkpoints,
    metrics_of,
    read_metrics,
    summarise_plan,
    tell_report,
    tuned_name,
    write_recipe,
    write_results,
)
from timechat.store import write_bytes, write_text

BEAT_S = 1.0
# How long a child may take to end when it is asked to.
GRACE_S = 20.0
# How often a job is taken up again after its child died without a word.
MAX_ATTEMPTS = 10


@dataclass
class Worker:
    """Runs the jobs of one ledger, up to `at_once` of them and as many as `memory_bytes` holds.

    It needs no torch, and so neither starts slowly nor takes memory from its children.
    """

    ledger: Ledger
    state: Path
    at_once: int = 1
    memory_bytes: int | None = None
    command: tuple[str, ...] = (sys.executable, "-m", "timechat")
    say: Callable[[str], None] = lambda _: None
    name: str = field(default_factory=lambda: f"{os.uname().nodename}-{uuid.uuid4().hex[:8]}")
    jobs: Jobs = field(init=False)
    files: Files = field(init=False)

    def __post_init__(self) -> None:
        self.jobs = Jobs(self.ledger)
        self.files = open_files(self.ledger, self.state)
        self._stopping = threading.Event()
        self._running: dict[str, threading.Thread] = {}

    def run(self) -> None:
        """Work until `stop` is called; running children are then ended, to be continued."""
        while not self._stopping.is_set():
            self._running = {k: t for k, t in self._running.items() if t.is_alive()}
            job = None
            try:
                if len(self._running) < self.at_once:
                    job = self.jobs.claim(self.name, self.memory_bytes, len(self._running))
                if job is None:
                    self.files.sweep()
            except DBAPIError as error:
                self.say(f"the ledger is out of reach, trying again: {error.orig}")
            if job is None:
                self._stopping.wait(BEAT_S)
                continue
            thread = threading.Thread(target=self.work, args=(job,), name=job.id)
            self._running[job.id] = thread
            thread.start()
        for thread in self._running.values():
            thread.join()

    def stop(self) -> None:
        self._stopping.set()

    def work(self, job: Job) -> None:
        """Take a leased job one stage further: check and plan it, or train it."""
        folder = self.state / "jobs" / job.id
        folder.mkdir(parents=True, exist_ok=True)
        lock = None
        try:
            lock = take_lock(folder)
            if lock is None:
                return  # its former child is still ending; the lease runs out and comes again
            if job.plan is None:
                self._prepare(job, folder)
            else:
                self._train(job, folder, lock)
        except LostLeaseError:
            self.say(f"{job.id}: cancelled, paused or taken over")
        except JobError as error:
            with suppress(LostLeaseError):
                self._fail(job, error)
        except DBAPIError as error:
            # The lease runs out, and whoever claims the job then ends its child and goes on.
            self.say(f"{job.id}: the ledger is out of reach: {error.orig}")
        except Exception as error:
            self.say(f"{job.id}: {error!r}")
            with suppress(LostLeaseError):
                self._fail(job, JobError(f"the worker failed: {error}", "server_error"))
        finally:
            if lock is not None:
                lock.close()

    def _prepare(self, job: Job, folder: Path) -> None:
        """Check the files, work out the plan, and put the job back into the queue with it."""
        train, validation = self._rows(job)
        check_rows(train, "training_file")
        if validation is not None:
            check_rows(validation, "validation_file")
        with self.jobs.held(job.id, self.name) as held:
            held.tell(Event("validated", "Files validated, moving job to queued state"))
            held.change(status="queued")
        recipe = folder / "plan.yaml"
        write_text(recipe, yaml.safe_dump(write_recipe(job, train, validation)))
        child = self._start(folder, ["plan", str(recipe), "--json"], ())
        while (status := child.poll()) is None:
            self._beat(job, child)
        if status != 0:
            raise _why(folder, status, "invalid_plan")
        plan = summarise_plan(json.loads((folder / "stdout").read_text(encoding="utf-8")))
        gib = plan["memory_bytes"] / 2**30
        text = f"Plan: {plan['steps']} steps in about {plan['train_seconds']} s, {gib:.2f} GiB"
        with self.jobs.held(job.id, self.name) as held:
            held.tell(Event("plan", text, {"plan": plan}))
            held.change(plan=plan, worker=None, lease_ms=0)

    def _train(self, job: Job, folder: Path, lock: Lock) -> None:
        train, validation = self._rows(job)
        recipe, run = folder / "recipe.yaml", folder / "run"
        if not recipe.is_file():
            write_text(recipe, yaml.safe_dump(write_recipe(job, train, validation)))
        again = job.status == "running" or job.attempts > 0
        with self.jobs.held(job.id, self.name) as held:
            held.tell(Event("started", "Fine-tuning job started"))
            if again:
                held.tell(Event("", "Continuing from the newest checkpoint"))
            started = {} if job.started_ms else {"started_ms": now_ms()}
            held.change(status="running", attempts=job.attempts + 1, **started)
        try:
            child = self._start(
                folder, ["train", str(recipe), "--out", str(run), "--json"], (lock.handle,)
            )
        finally:
            lock.close()  # from here on only the child holds it
        story = Story(job, run)
        while (status := child.poll()) is None:
            self._beat(job, child, story)
        if status == 0:
            self._finish(job, run, story)
        elif status < 0 and job.attempts + 1 < MAX_ATTEMPTS:
            with self.jobs.held(job.id, self.name) as held:
                held.tell(Event("", f"Training was killed (signal {-status})", level="warn"))
                held.change(worker=None, lease_ms=0)
        else:
            raise _why(folder, status, "training_failed")

    def _beat(self, job: Job, child: subprocess.Popen[bytes], story: Story | None = None) -> None:
        """Wait a moment, renew the lease and tell what is new; end the child when it is not ours
        any more."""
        with suppress(subprocess.TimeoutExpired):
            child.wait(BEAT_S)
        try:
            with self.jobs.held(job.id, self.name) as held:
                if story is not None:
                    story.tell(held, is_over=False)
                if self._stopping.is_set() and child.poll() is None:
                    held.change(worker=None, lease_ms=0)
                    raise _Stop
        except (LostLeaseError, _Stop):
            end(child)
            raise LostLeaseError(job.id) from None

    def _finish(self, job: Job, run: Path, story: Story) -> None:
        """Everything that a finished job leaves, in one transaction."""
        rows = read_metrics(run)
        name = tuned_name(job)
        headline, report = tell_report(run)
        with self.jobs.held(job.id, self.name) as held:
            story.tell(held, is_over=True)
            made = [
                self._result(held, job, "step_metrics.csv", write_results(rows).encode()),
                self._result(held, job, "report.json", (run / "report.json").read_bytes()),
            ]
            held.add_model(name, job.project, str(run))
            held.tell(Event("report", headline, report))
            held.tell(Event("model", f"New fine-tuned model created: {name}"))
            held.tell(Event("done", "The job has successfully completed"))
            held.change(
                status="succeeded",
                fine_tuned_model=name,
                result_files=made,
                trained_tokens=sum(row.get("tokens", 0) for row in rows.values()),
                finished_ms=now_ms(),
                finish_ms=None,
                worker=None,
                lease_ms=0,
            )
        self.say(f"{job.id}: {name}")

    def _result(self, held: Held, job: Job, name: str, content: bytes) -> str:
        beside = self.files.folder / f".{job.id}-{name}"
        write_bytes(beside, content)
        digest = hashlib.sha256(content).hexdigest()
        return self.files.enter(
            held.connection, beside, digest, job.project, name, "fine-tune-results"
        ).id

    def _fail(self, job: Job, error: JobError) -> None:
        with self.jobs.held(job.id, self.name) as held:
            held.tell(Event("failed", str(error), error.row, level="error"))
            held.change(
                status="failed",
                error=error.row,
                finished_ms=now_ms(),
                finish_ms=None,
                worker=None,
                lease_ms=0,
            )
        self.say(f"{job.id}: {error}")

    def _rows(self, job: Job) -> tuple[Path, Path | None]:
        found: list[Path | None] = []
        for param in ("training_file", "validation_file"):
            name = getattr(job, param)
            if name is not None and self.files.get(job.project, name) is None:
                raise JobError(f"the {param} {name} was deleted", f"invalid_{param}", param)
            found.append(self.files.path(name) if name is not None else None)
        assert found[0] is not None
        return found[0], found[1]

    def _start(self, folder: Path, words: list[str], fds: tuple[int, ...]) -> Any:
        """A child in a session of its own, so that Ctrl-C at the server does not reach it.

        It knows whose child it is: when we are killed, it saves and ends.
        """
        with (folder / "stdout").open("wb") as out, (folder / "stderr").open("wb") as err:
            child = subprocess.Popen(
                [*self.command, *words],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
                pass_fds=fds,
                env=child_environment(),
            )
        write_text(folder / "child.pid", str(child.pid))
        return child


class _Stop(Exception):  # noqa: N818 - no error: the worker was asked to stop
    """The worker ends, and the job goes on with another."""


class Story:
    """What a run directory tells of a job, each thing once."""

    def __init__(self, job: Job, run: Path) -> None:
        self.job = job
        self.run = run
        self._told: set[str] = set()
        self._seen = (0, 0, 0)

    def tell(self, held: Held, is_over: bool) -> None:
        """Tell the steps and checkpoints that were not told, in order. The newest step waits for
        its validation until something follows it, or the run is over."""
        # Before the rows: a checkpoint's own row is written before it.
        folders = find_checkpoints(self.run)
        rows = self._rows(len(folders), is_over)
        if not rows:
            return
        total = int((self.job.plan or {}).get("steps", 0))
        newest = max(rows)
        for step in sorted(rows):
            if step == newest and not (is_over or step in folders):
                break
            if self._is_news(f"step-{step}"):
                held.tell(_step_event(step, total, rows))
            if step in folders and self._is_news(f"checkpoint-{step}"):
                name = checkpoint_name(self.job, step)
                found = Checkpoint(step, name, metrics_of(step, rows), str(folders[step]))
                held.add_checkpoint(self.job.project, found)
                held.tell(Event(f"checkpoint-{step}", f"Checkpoint created at step {step}: {name}"))
        if total > newest > 0 and not is_over:
            elapsed = max(float(row.get("elapsed_s", 0.0)) for row in rows.values())
            left_ms = 1000 * elapsed / newest * (total - newest)
            held.change(finish_ms=now_ms() + round(left_ms))

    def _is_news(self, key: str) -> bool:
        """Whether this is the first time; the ledger would not take it twice either."""
        first = key not in self._told
        self._told.add(key)
        return first

    def _rows(self, num_folders: int, is_over: bool) -> dict[int, dict[str, Any]]:
        """The log's rows; none where nothing was written since the last look."""
        path = self.run / "metrics.jsonl"
        if not path.is_file():
            return {}
        status = path.stat()
        seen = (status.st_size, status.st_mtime_ns, num_folders)
        if seen == self._seen and not is_over:
            return {}
        self._seen = seen
        return read_metrics(self.run)


class Lock:
    """An exclusive lock, held for as long as any process has `handle` open."""

    def __init__(self, handle: int) -> None:
        self.handle = handle

    def close(self) -> None:
        """Let go of it here; a second time does nothing."""
        handle, self.handle = self.handle, -1
        if handle >= 0:
            os.close(handle)


def take_lock(folder: Path) -> Lock | None:
    """The job's lock; a child that outlived its worker is ended for it.

    None when the lock does not become free.
    """
    lock = Lock(os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600))
    deadline = time.monotonic() + 2 * GRACE_S
    while True:
        try:
            fcntl.flock(lock.handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except BlockingIOError:
            if time.monotonic() > deadline:
                lock.close()
                return None
        is_late = time.monotonic() > deadline - GRACE_S
        _signal_orphan(folder, signal.SIGKILL if is_late else signal.SIGTERM)
        time.sleep(0.2)


def _signal_orphan(folder: Path, number: int) -> None:
    """Signal the child that `folder` names, if that process still is what it was."""
    with suppress(OSError, ValueError):
        pid = int((folder / "child.pid").read_text())
        command = Path(f"/proc/{pid}/cmdline")
        is_ours = not Path("/proc/self").exists() or folder.name.encode() in command.read_bytes()
        if is_ours:
            os.kill(pid, number)


def end(child: subprocess.Popen[bytes]) -> None:
    """End a child: asked first, then made to."""
    with suppress(ProcessLookupError):
        child.terminate()
        try:
            child.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _step_event(step: int, total: int, rows: dict[int, dict[str, Any]]) -> Event:
    found = metrics_of(step, rows)
    parts = [
        f"{words}={found[name]:.4f}"
        for words, name in (
            ("training loss", "train_loss"),
            ("validation loss", "valid_loss"),
            ("full validation loss", "full_valid_loss"),
        )
        if name in found
    ]
    data = {**found, "step": step, "total_steps": total}
    return Event(f"step-{step}", f"Step {step}/{total}: {', '.join(parts)}", data, type="metrics")


def _why(folder: Path, status: int, code: str) -> JobError:
    """What the child's last words say."""
    said = (folder / "stderr").read_text(encoding="utf-8", errors="replace").splitlines()
    told = [line for line in said if line.startswith("error: ")]
    if told:
        return JobError(told[-1].removeprefix("error: "), code)
    last = said[-1] if said else "nothing was said"
    return JobError(f"training ended with status {status}: {last}", "server_error")
