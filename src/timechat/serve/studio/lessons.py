"""Lessons that the studio started: `timechat learn RUN` in child processes, one a run.

A page that closes, or a server that ends, loses nothing: what the child does lies in the run, and
the next lesson goes on from there.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from timechat.serve.errors import ApiError
from timechat.stages.learning.progress import read_progress
from timechat.stages.runs.versions import LEARNED
from timechat.store.claims import is_owned

LOG = "lesson.log"
PATIENCE_S = 20.0
# How a lesson ends that did what it should, or was asked to stop.
ENDED = (0, -signal.SIGTERM, 128 + signal.SIGTERM, 128 + signal.SIGINT)


def learn_command(run: Path, seed: int) -> list[str]:
    return [sys.executable, "-m", "timechat", "learn", str(run), "--seed", str(seed)]


@dataclass(frozen=True, slots=True)
class State:
    """What a run's lesson is doing: `progress` while it runs, `fault` where its last one failed."""

    running: bool
    progress: dict[str, Any] | None = None
    fault: str = ""


class Lessons:
    """The children, by run."""

    def __init__(self, command: Callable[[Path, int], Sequence[str]] = learn_command) -> None:
        self.command = command
        self._children: dict[Path, subprocess.Popen[bytes]] = {}
        self._lock = threading.Lock()

    def start(self, run: Path, seed: int = 0) -> None:
        """Begin a lesson. Raises ApiError 409 where one runs already."""
        with self._lock:
            if self.state(run).running:
                raise ApiError(409, f"{run.name} is learning already", code="conflict")
            folder = run / LEARNED
            folder.mkdir(exist_ok=True)
            with (folder / LOG).open("wb") as log:
                self._children[run] = subprocess.Popen(
                    self.command(run, seed), stdin=subprocess.DEVNULL, stdout=log, stderr=log
                )

    def state(self, run: Path) -> State:
        child = self._children.get(run)
        running = child is not None and child.poll() is None
        if child is None and is_owned(run):
            running = read_progress(run / LEARNED) is not None  # begun in a terminal, or before us
        if running:
            return State(True, read_progress(run / LEARNED))
        failed = child is not None and child.returncode not in ENDED
        return State(False, fault=_last_line(run / LEARNED / LOG) if failed else "")

    def stop(self, run: Path) -> None:
        """Ask the lesson to save and end."""
        child = self._children.get(run)
        if child is not None and child.poll() is None:
            child.terminate()

    def close(self) -> None:
        """End every lesson; each saves where it is."""
        living = [child for child in self._children.values() if child.poll() is None]
        for child in living:
            child.terminate()
        for child in living:
            try:
                child.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.is_file() else []
    told = [line.strip() for line in lines if line.strip()]
    return told[-1].removeprefix("error: ") if told else "the lesson ended without a word"
