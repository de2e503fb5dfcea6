"""`learn`: a run learns from its corrections, and the new version is offered if nothing was lost.

One folder a version (`stages.runs.versions`). Here it is seen to that nothing is learned twice and
that a lesson which was cut short goes on; what happens in one is `lesson`'s.
"""

from __future__ import annotations

import signal
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from timechat.errors import RunError, StoppedError
from timechat.stages.learning.corrections import Gathered, find_corrections
from timechat.stages.learning.lesson import ABOUT, Lesson
from timechat.stages.learning.progress import Told
from timechat.stages.runs.versions import (
    LEARNED,
    VERSION,
    Version,
    check_run,
    in_use,
    version_in_use,
    versions,
)
from timechat.stages.stop import Stop
from timechat.stages.watch import Watcher
from timechat.store.claims import owned
from timechat.store.files import read_json, write_json
from timechat.store.folders import remove_folder, sweep_run


def learn(
    run: Path, watcher: Watcher | None = None, stop: Stop | None = None, seed: int = 0
) -> Version:
    """Make a version of `run` from its corrections; whether it is offered stands in it.

    What answers stays as it is. A lesson that was stopped or killed goes on from its newest
    checkpoint. Raises LedgerError where there is nothing to learn from, RunError where it was
    learned already, and StoppedError once `stop` is asked.
    """
    check_run(run)
    began = time.monotonic()
    with ExitStack() as held:
        held.enter_context(owned(run))
        gathered = find_corrections(run)
        _check_new(run, gathered, seed)
        folder = _claim(run, {"parent": in_use(run), "corrections": gathered.digest, "seed": seed})
        told = held.enter_context(Told(run / LEARNED, watcher or Watcher()))
        lesson = Lesson(run, folder, gathered, told, stop or Stop(), seed)
        try:
            lesson.take()
        except (KeyboardInterrupt, StoppedError) as asked:
            number = asked.signum if isinstance(asked, StoppedError) else signal.SIGINT
            told_how = f"stopped; {run} answers as before, and `timechat learn {run}` goes on"
            raise StoppedError(told_how, number) from None
        return lesson.finish(began)


def _check_new(run: Path, gathered: Gathered, seed: int) -> None:
    """Raises RunError where these very corrections were learned already."""
    count = len(gathered.corrections)
    using = version_in_use(run)
    if using is not None and using.content["corrections"] == gathered.digest:
        raise RunError(f"{run} has learned its {count} corrections already ({using.name})")
    for version in versions(run):
        key = (version.parent, version.content["corrections"], version.content["seed"])
        if key == (in_use(run), gathered.digest, seed):
            advice = (
                f"take it with `timechat learn {run} --switch`"
                if version.decision == "offered"
                else "add other wordings of what it should learn, or try `--seed N`"
            )
            raise RunError(
                f"{version.name} of {run} was made from the same {count} corrections, and is "
                f"{version.decision}: {advice}"
            )


def _claim(run: Path, about: dict[str, Any]) -> Path:
    """The folder of the version to make: a new one, or that of a lesson which was cut short."""
    numbers = [int(p.name) for p in (run / LEARNED).glob("[0-9]*") if p.name.isdigit()]
    last = run / LEARNED / f"{max(numbers, default=0):03d}"
    if last.is_dir() and not (last / VERSION).is_file():
        sweep_run(last)
        if (last / ABOUT).is_file() and read_json(last / ABOUT) == about:
            return last
        remove_folder(last)
        folder = last
    else:
        folder = run / LEARNED / f"{max(numbers, default=0) + 1:03d}"
    folder.mkdir(parents=True)
    write_json(folder / ABOUT, about)
    return folder
