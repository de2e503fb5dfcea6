"""The runs of a folder: their state, verdict and size; taking one away, and keeping a checkpoint.

A run is what `train` left. Deleting refuses whatever it does not know or what is in use, and takes
a folder's name away first, so that no half of a run is ever left looking like one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from timechat.errors import RunError
from timechat.manifest import CHECKPOINT, checkpoints, step_of
from timechat.stages.runs.keep import pin as keep_step
from timechat.stages.runs.keep import pinned
from timechat.stages.runs.record import ENVIRONMENT, HISTORY, RECIPE
from timechat.stages.runs.versions import LEARNED, parents
from timechat.store.claims import is_owned, owned
from timechat.store.files import read_json, read_lines
from timechat.store.folders import remove_folder, size_of

State = Literal["running", "finished", "stopped", "failed", "interrupted", "new"]
# What a run is after the last event of its history, when no process owns it.
STATES: dict[str, State] = {
    "started": "interrupted",
    "stopped": "stopped",
    "failed": "failed",
    "finished": "finished",
}
# What `train` and `compare` leave in a run.
KNOWN = frozenset({
    RECIPE, ENVIRONMENT, HISTORY, "plan.json", "checks.json", "too_long.jsonl", "offending.jsonl",
    "data", "metrics.jsonl", "samples.jsonl", "checkpoints", "best", "evals", "pinned.json",
    "report.json", "report.md", "report.html",
    LEARNED,
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Listed:
    """A run as `timechat runs` shows it."""

    path: str
    state: State
    verdict: str
    step: int
    steps: int
    checkpoints: tuple[int, ...]
    pinned: tuple[int, ...]
    bytes: int


def list_runs(folder: Path) -> list[Listed]:
    """The runs in `folder`, or the run that it is itself. Raises RunError when there is no such
    folder."""
    if not folder.is_dir():
        raise RunError(f"no folder {folder}: name the one that holds your runs")
    return [describe(run) for run in _runs(folder)]


def describe(run: Path) -> Listed:
    """What the files of a run say about it."""
    report: Any = _maybe(run / "report.json")
    plan: Any = _maybe(run / "plan.json")
    steps = plan.get("numbers", {}).get("steps", {}).get("value", 0)
    done = 0
    if (run / "metrics.jsonl").is_file():
        done = max((int(row["step"]) for row in read_lines(run / "metrics.jsonl")), default=0)
    return Listed(
        path=str(run),
        state=_state(run),
        verdict=str(report.get("verdict", "")),
        step=done,
        steps=int(steps),
        checkpoints=tuple(sorted(map(step_of, checkpoints(run)))),
        pinned=tuple(pinned(run)),
        bytes=size_of(run),
    )


def remove(name: str) -> int:
    """Delete RUN or RUN@step-N; returns the bytes freed.

    Raises RunError for what is no run, what is in use, what holds files that are not a run's, and
    for a checkpoint that is the best, pinned, or all that an unfinished run can go on from.
    """
    run, step = parse(name)
    with owned(run):
        if step is None:
            strangers = sorted(
                p.name for p in run.iterdir() if p.name not in KNOWN and p.name[0] != "."
            )
            if strangers:
                raise RunError(
                    f"{run} also holds {', '.join(strangers[:5])}, which no run wrote: take that "
                    "out first"
                )
            freed = size_of(run)
            remove_folder(run)
            return freed
        folder = _removable(run, step)
        freed = size_of(folder)
        remove_folder(folder)
        return freed


def pin(name: str, keep: bool) -> Path:
    """Keep the checkpoint RUN@step-N whatever comes, or leave it to the rule again."""
    run, step = parse(name)
    if step is None:
        raise RunError(f"{name}: name a checkpoint, RUN@step-N; kept: {_kept(run)}")
    folder = _folder(run, step)
    keep_step(run, step, keep)
    return folder


def parse(name: str) -> tuple[Path, int | None]:
    """The run and the step of RUN or RUN@step-N. Raises RunError."""
    path, at, step = name.rpartition("@")
    run = Path(path if at else name)
    if not (run / RECIPE).is_file():
        raise RunError(f"no run at {run}: it has no {RECIPE}")
    if not at:
        return run, None
    number = step.removeprefix("step-")
    if not number.isdigit():
        raise RunError(f"{step!r} is no checkpoint; kept: {_kept(run)}")
    return run, int(number)


def _removable(run: Path, step: int) -> Path:
    folder = _folder(run, step)
    if (run / "best").exists() and (run / "best").resolve().name.startswith(folder.name):
        raise RunError(f"{folder.name} is the best checkpoint of {run}: it stays")
    if any(Path(parent).name.startswith(folder.name) for parent in parents(run)):
        raise RunError(f"{folder.name} is what a learned version of {run} goes back to: it stays")
    if step in pinned(run):
        raise RunError(f"{folder.name} is pinned: `timechat pin --remove {run}@step-{step}` first")
    if next(iter(checkpoints(run))) == folder and _state(run) != "finished":
        raise RunError(f"{folder.name} is what {run} would go on from: it stays")
    return folder


def _folder(run: Path, step: int) -> Path:
    folder = next((p for p in checkpoints(run) if step_of(p) == step), None)
    if folder is None:
        raise RunError(f"{run} has no checkpoint at step {step}; kept: {_kept(run)}")
    return folder


def _kept(run: Path) -> str:
    return ", ".join(p.name for p in checkpoints(run) if CHECKPOINT.match(p.name)) or "none"


def _runs(folder: Path) -> Iterator[Path]:
    if (folder / RECIPE).is_file():
        yield folder
        return
    for path in sorted(folder.iterdir()):
        if path.name[0] != "." and path.is_dir() and (path / RECIPE).is_file():
            yield path


def _state(run: Path) -> State:
    """What became of the run, by its lock and the last lines of its history."""
    if is_owned(run):
        return "running"
    events: list[str] = (
        [row["event"] for row in read_lines(run / HISTORY)] if (run / HISTORY).exists() else []
    )
    states: list[State] = [STATES[event] for event in events if event in STATES]
    if not states:
        return "finished" if (run / "report.json").is_file() else "new"
    return states[-1]


def _maybe(path: Path) -> Any:
    return read_json(path) if path.is_file() else {}
