"""The versions that a run has learned: which one answers, which is offered, and the way back.

    RUN/best                        the checkpoint that answers: the run's own, or a version's
    RUN/learned/001/version.json    what was learned, compared and decided; a version exists when
                                    this file does, and it is written last
    RUN/learned/001/checkpoints/    its checkpoint, which loads like any other

Taking a version and going back move one link, in one step: nothing is copied and nothing deleted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from timechat.errors import RunError
from timechat.manifest import verify
from timechat.stages.runs.keep import point
from timechat.stages.runs.record import RECIPE, note
from timechat.store.claims import owned
from timechat.store.files import read_json

LEARNED = "learned"
VERSION = "version.json"
BEST = "best"
Decision = Literal["offered", "refused"]


@dataclass(frozen=True, slots=True)
class Version:
    """A version that was trained and compared. `parent` and `checkpoint` are paths in the run."""

    run: Path
    number: int
    parent: str
    checkpoint: str
    decision: Decision
    content: dict[str, Any]

    @property
    def name(self) -> str:
        return f"version {self.number}"

    @property
    def folder(self) -> Path:
        return self.run / LEARNED / f"{self.number:03d}"


def check_run(run: Path) -> None:
    """Raises RunError when `run` is no run that answers."""
    if not (run / RECIPE).is_file():
        raise RunError(f"no run at {run}: it has no {RECIPE}")
    if not (run / BEST).exists():
        raise RunError(f"{run} has no best checkpoint yet: has it been trained?")


def in_use(run: Path) -> str:
    """The checkpoint that answers for the run, as a path in it."""
    check_run(run)
    return (run / BEST).resolve().relative_to(run.resolve()).as_posix()


def versions(run: Path) -> list[Version]:
    """Every finished version, the oldest first."""
    return [_read(run, file) for file in _files(run)]


def version_in_use(run: Path) -> Version | None:
    """The version that answers; None where the run answers as it was trained."""
    answering = in_use(run)
    return next((v for v in versions(run) if v.checkpoint == answering), None)


def find_offered(run: Path) -> Version | None:
    """The newest version that may take the place of what answers now."""
    answering = in_use(run)
    found = [v for v in versions(run) if v.parent == answering and v.decision == "offered"]
    return found[-1] if found else None


def take_offered(run: Path) -> Version:
    """Let the newest offered version answer. Raises RunError when none is."""
    with owned(run):
        version = find_offered(run)
        if version is None:
            raise RunError(
                f"{run} has no version to take: `timechat learn {run}` makes one, and offers it "
                "only where nothing else was lost"
            )
        _answer_from(run, version.checkpoint)
        note(run, "switched", to=version.checkpoint, was=version.parent)
        return version


def go_back(run: Path) -> str:
    """Let the run answer as it did before the version in use; returns the checkpoint's path.

    Raises RunError where it answers as it was trained.
    """
    with owned(run):
        version = version_in_use(run)
        if version is None:
            raise RunError(f"{run} answers as it was trained: there is nothing to go back from")
        _answer_from(run, version.parent)
        note(run, "switched", to=version.parent, was=version.checkpoint)
        return version.parent


def put_back(run: Path, checkpoint: str) -> None:
    """Let `checkpoint` answer again: what was taken in its place cannot be loaded."""
    with owned(run):
        was = in_use(run)
        _answer_from(run, checkpoint)
        note(run, "switched", to=checkpoint, was=was)


def parents(run: Path) -> set[str]:
    """The checkpoints that a version was made from: the way back leads there."""
    return {version.parent for version in versions(run)}


def _answer_from(run: Path, checkpoint: str) -> None:
    folder = run / checkpoint
    if not folder.is_dir():
        raise RunError(f"{folder} is not there any more, so {run} stays as it is")
    verify(folder, only_model=True)
    point(run, BEST, folder)


def _files(run: Path) -> Iterator[Path]:
    folders = (run / LEARNED).glob("[0-9]*")
    yield from sorted(f / VERSION for f in folders if (f / VERSION).is_file())


def _read(run: Path, file: Path) -> Version:
    row: dict[str, Any] = read_json(file)
    return Version(run, row["number"], row["parent"], row["checkpoint"], row["decision"], row)
