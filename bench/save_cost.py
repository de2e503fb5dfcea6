"""What saving costs a run of the starter: how long training stands still, and how much slower the
steps beside a save are, over the time between two saves at the default interval.

    python bench/save_cost.py [--saves 5]

A run of the shipped helpdesk recipe takes steps without a save and steps with one in turn, in one
process. A save is the whole of what `train` does: copy, write, fsync, hash, rename, read back and
verify, take the old one away.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

from timechat.model.machine import machine_name
from timechat.recipe_file import load_recipe
from timechat.shipped import shipped
from timechat.stages.training import tune as stage
from timechat.stages.training.context import build_context
from timechat.stages.training.learner import Learner
from timechat.stages.training.select import Candidate
from timechat.stages.watch import Watcher


class DoneError(Exception):
    """The figures are there; the run need not go on."""


class Measured(Learner):
    """A learner that only measures."""

    saves = 5
    figures: dict[str, float | int | str]

    def run(self) -> list[Candidate]:
        for _ in range(2):
            self._time_step()
        alone: list[float] = []
        still: list[float] = []
        beside: list[float] = []
        for _ in range(self.saves):
            alone.append(self._time_step())
            started = time.perf_counter()
            self.saver.finish_later(self._begin_save(is_planned=True))
            still.append(time.perf_counter() - started)
            beside.append(self._time_step())
            self.saver.wait()
        step, slower = (
            statistics.median(alone),
            statistics.median(beside) - statistics.median(alone),
        )
        stands = statistics.median(still)
        every = int(self.plan["checkpoint_every"])
        Measured.figures = {
            "machine": machine_name(),
            "saves": self.saves,
            "checkpoint_mb": round(sum(f.stat().st_size for f in self._newest()) / 1e6, 1),
            "step_s": round(step, 3),
            "step_least_s": round(min(alone), 3),
            "step_most_s": round(max(alone), 3),
            "stands_still_s": round(stands, 3),
            "step_beside_a_save_s": round(step + slower, 3),
            "checkpoint_every": every,
            "share_percent": round(100 * (stands + max(0.0, slower)) / (every * step), 2),
            "share_standing_still_percent": round(100 * stands / (every * step), 2),
        }
        raise DoneError

    def _time_step(self) -> float:
        started = time.perf_counter()
        self._step()
        return time.perf_counter() - started

    def _newest(self) -> list[Path]:
        folder = sorted((self.out / "checkpoints").glob("step-*"))[-1]
        return [path for path in folder.rglob("*") if path.is_file()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--saves", type=int, default=5)
    Measured.saves = parser.parse_args().saves
    stage.Learner = Measured
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as scratch:
        out = Path(scratch) / "run"
        context = build_context(load_recipe(shipped("helpdesk/recipe.yaml")), out, Watcher())
        try:
            stage.tune(context)
        except DoneError:
            print(json.dumps(Measured.figures, indent=2))


if __name__ == "__main__":
    main()
