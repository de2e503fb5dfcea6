"""The other ranks of a run: they tune with the first one, and leave everything else to it.

The first rank has the run's folder. A follower works in a scratch folder that shows it the rows,
the plan and the checkpoints of the run and takes the logs that it writes like any other; nothing of
that is kept. Both meet when the first has asked all it asks before, and part with its report.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from timechat.model.ranks import Ranks, leave
from timechat.recipe import Recipe
from timechat.records import Report
from timechat.stages.runs.record import ENVIRONMENT, RECIPE
from timechat.stages.stop import Stop
from timechat.stages.training.context import Context, build_context
from timechat.stages.training.tune import tune
from timechat.stages.watch import Watcher

_COPIED = (RECIPE, ENVIRONMENT, "plan.json", "checks.json")


def meet(context: Context) -> None:
    """The first rank is ready to tune: let the others come."""
    (context.out / "checkpoints").mkdir(exist_ok=True)
    context.ranks.wait()


def follow(recipe: Recipe, out: Path, ranks: Ranks, stop: Stop | None) -> Report:
    """Tune beside the first rank, whose run is in `out`; returns its report."""
    ranks.wait()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name in _COPIED:
            if (out / name).is_file():
                shutil.copy(out / name, folder / name)
        (folder / "checkpoints").symlink_to((out / "checkpoints").resolve())
        if not recipe.data.prepared:
            (folder / "data").symlink_to((out / "data").resolve())
        tune(build_context(recipe, folder, Watcher(), stop, (), ranks))
        return part(ranks)


def part(ranks: Ranks, report: Report | None = None) -> Report:
    """The first rank's report, on every rank; after this each goes its own way."""
    told = ranks.tell(report)
    leave()
    assert told is not None
    return told
