"""The worker: jobs from the ledger, one child process each, that nothing can lose or run twice.

Two things keep a job from running twice: the ledger's lease, and a lock that the child inherits
(`process`). Whatever is killed, the next worker goes on from the newest checkpoint: what a
dead worker of the same folder held is taken over at once, what any other held when its lease runs
out. What is done with a job is `executor`'s.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from timechat.ledger.database import Ledger
from timechat.ledger.files import Files, open_files
from timechat.ledger.jobs import Job
from timechat.ledger.leases import Leases, LostLeaseError
from timechat.stages.jobs.executor import Executor, StoppedWorkError
from timechat.stages.jobs.process import Lock, take_lock, try_lock

LOOK_S = 1.0
SWEEP_S = 60.0


@dataclass
class Worker:
    """Runs the jobs of one ledger: trains up to `at_once` of them and as many as `memory_bytes`
    holds, and plans one beside.

    It needs no torch, and so neither starts slowly nor takes memory from its children.
    """

    ledger: Ledger
    state: Path
    at_once: int = 1
    memory_bytes: int | None = None
    command: tuple[str, ...] = (sys.executable, "-m", "timechat")
    say: Callable[[str], None] = lambda _: None
    name: str = field(default_factory=lambda: f"{os.uname().nodename}-{uuid.uuid4().hex[:8]}")
    leases: Leases = field(init=False)
    files: Files = field(init=False)

    def __post_init__(self) -> None:
        self.leases = Leases(self.ledger)
        self.files = open_files(self.ledger, self.state)
        self._stopping = threading.Event()
        self._running: dict[str, tuple[Job, threading.Thread]] = {}
        self._sign: Lock | None = None
        self._swept = -SWEEP_S

    def run(self) -> None:
        """Work until `stop` is called; running children are then ended, to be continued."""
        while not self._stopping.is_set():
            try:
                job = self._next()
            except (SQLAlchemyError, OSError) as error:
                self.say(f"looking for work failed, trying again: {error}")
                job = None
            if job is None:
                self._stopping.wait(LOOK_S)
                continue
            thread = threading.Thread(target=self._work, args=(job,), name=job.id)
            self._running[job.id] = (job, thread)
            thread.start()
        for _, thread in self._running.values():
            thread.join()
        if self._sign is not None:
            self._sign.close()

    def stop(self) -> None:
        self._stopping.set()

    def _next(self) -> Job | None:
        """A job that may be taken further now, leased to this worker."""
        if self._sign is None:
            self._sign = self._take_over()
        if time.monotonic() > self._swept + SWEEP_S:
            self.files.sweep()
            self._swept = time.monotonic()
        self._running = {k: (j, t) for k, (j, t) in self._running.items() if t.is_alive()}
        for is_planned, places in ((False, 1), (True, self.at_once)):
            busy = sum((job.plan is not None) == is_planned for job, _ in self._running.values())
            if busy < places:
                job = self.leases.claim(
                    self.name,
                    is_planned=is_planned,
                    memory_bytes=self.memory_bytes,
                    running=list(self._running),
                )
                if job is not None:
                    return job
        return None

    def _take_over(self) -> Lock:
        """Sign in, with a lock that ends with this process, and release what the dead held."""
        folder = self.state / "workers"
        folder.mkdir(parents=True, exist_ok=True)
        dead: list[Path] = []
        for path in folder.iterdir():
            lock = try_lock(path)
            if lock is not None:
                lock.close()
                dead.append(path)
        self.leases.release([path.name for path in dead])
        for path in dead:
            path.unlink(missing_ok=True)
        sign = try_lock(folder / self.name)
        assert sign is not None, "no other worker has this name"
        return sign

    def _work(self, job: Job) -> None:
        folder = (self.state / "jobs" / job.id).resolve()
        executor = Executor(
            job,
            self.name,
            self.leases,
            self.files,
            folder,
            self.command,
            self._stopping,
            self.say,
        )
        lock = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = take_lock(folder)
            if lock is not None:  # else its former child is still ending, and it is claimed again
                executor.run(lock)
        except LostLeaseError:
            self.say(f"{job.id}: cancelled, paused or taken over")
        except StoppedWorkError:
            self.say(f"{job.id}: stopped, to go on at the next start")
        except OSError as error:
            self.say(f"{job.id}: {error}, trying again")
        finally:
            if lock is not None:
                lock.close()
