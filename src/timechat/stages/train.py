"""`train`: prepare if needed, ask before, plan, tune, ask after, prove.

This is where the floors meet: the questions are `evals`', the files `store`'s, and what happens
between before and after is `tune`'s; the order of things is decided here.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from timechat.errors import RunError, UserError
from timechat.evals.suite import OWN, Decoding, General
from timechat.model.adapt import adapters
from timechat.model.load import load, resolve
from timechat.model.machine import peak_memory
from timechat.model.method import name_method
from timechat.model.ranks import Ranks, join
from timechat.model.repeat import repeatable
from timechat.recipe import Recipe, load_recipe
from timechat.records import Plan, Report
from timechat.stages import snapshot
from timechat.stages.allowance import afford, allowance, measure_pace
from timechat.stages.card import finish_card
from timechat.stages.checks import check_export
from timechat.stages.compare import Extra, build_report
from timechat.stages.follow import follow, meet, part
from timechat.stages.health import tell_skipped
from timechat.stages.outline import is_elsewhere, outline
from timechat.stages.record import claim, make_room
from timechat.stages.remember import Memory
from timechat.stages.room import Room, enter, prepared_rows
from timechat.stages.stop import Stop
from timechat.stages.tune import tune
from timechat.stages.watch import Watcher
from timechat.store import owned, read_lines, remove_folder, sweep_run


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run: its folder and its report."""

    folder: Path
    report: Report


def train(
    recipe: Recipe,
    out: Path,
    watcher: Watcher | None = None,
    stop: Stop | None = None,
    allow: Sequence[str] = (),
) -> Run:
    """Run the whole recipe, leaving everything in `out`; a run that exists there is continued.

    `allow` names what may have changed since then: `recipe`, `data`, `base`. Raises UserError for
    whatever the user can mend, before anything is trained, and StoppedError once `stop` is asked.
    """
    with repeatable(recipe.train.deterministic):
        ranks = join()
        if not ranks.is_first:
            return Run(out, follow(recipe, out, ranks, stop))
        make_room(out)
        with owned(out):
            return _run(_enter(recipe, out, watcher or Watcher(), stop, allow, ranks))


def _enter(
    recipe: Recipe,
    out: Path,
    watcher: Watcher,
    stop: Stop | None,
    allow: Sequence[str],
    ranks: Ranks,
) -> Room:
    """The run's room: of a new run, or of the one that is in `out`."""
    sweep_run(out)
    is_new = claim(recipe, out, allow)
    try:
        room = enter(recipe, out, watcher, stop, allow, ranks)
    except UserError:
        if is_new:  # nothing that looks like a run is left of a recipe that cannot be one
            remove_folder(out)
        raise
    room.note("started", process=os.getpid(), machine=room.plan.machine["name"])
    return room


def _run(room: Room) -> Run:
    recipe, out, watcher = room.recipe, room.out, room.watcher
    num_general = sum(choice.tag != OWN for choice in room.general.choices)
    before = _before(room)
    meet(room)
    checks, strength = tune(room)
    if room.ranks.count > 1 and not adapters(room.loaded.model):
        # The rows of the weights lie apart: what is asked is what was saved.
        room.loaded = replace(room.loaded, model=load(resolve(str(out))).model)
    after = snapshot.take(
        room.loaded, room.task, room.general, room.plan["max_new_tokens"], watcher, "after"
    )
    snapshot.write(after, room.task, out / "evals" / "after")
    checks.append(check_export(room.loaded, room.task.examples, out / "best"))
    if skipped := tell_skipped(out):
        watcher.say(skipped)
    report = build_report(
        out,
        room.task,
        before,
        after,
        recipe.evaluate.retention_margin,
        checks,
        _cost(room, strength),
        Extra(
            findings=(skipped,) if skipped else (),
            num_general=num_general,
            decoding=Decoding(room.plan["max_new_tokens"], room.loaded.renderer.template),
        ),
    )
    finish_card(room, report)
    room.note("finished", verdict=report.verdict)
    return Run(out, part(room.ranks, report))


def resume(
    out: Path,
    watcher: Watcher | None = None,
    stop: Stop | None = None,
    allow: Sequence[str] = (),
) -> Run:
    """Go on with the run in `out` from its newest checkpoint."""
    if not (out / "recipe.yaml").is_file():
        raise RunError(f"no run at {out}: it has no recipe.yaml")
    return train(load_recipe(out / "recipe.yaml"), out, watcher, stop, allow)


def preview(recipe: Recipe, watcher: Watcher | None = None) -> Plan:
    """The plan of a run, without leaving anything behind, or downloading a model's weights."""
    watcher = watcher or Watcher()
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "run"
        if not is_elsewhere(recipe.base):
            return enter(recipe, out, watcher).plan
        plan = outline(recipe, prepared_rows(recipe, out, watcher), out)
    watcher.planned(plan)
    return plan


def _before(room: Room) -> snapshot.Snapshot:
    """The base's answers, found or asked; the room keeps the general questions of both sides."""
    folder = room.out / "evals" / "before"
    found = snapshot.read(folder, room.task)
    asked = snapshot.asked_in(found, room.general) if found else None
    if found is not None and asked is not None:
        room.general = asked
        return found
    memory = Memory(room.loaded, room.watcher)
    room.general = _affordable(room, memory)
    longest = room.plan["max_new_tokens"]
    found = snapshot.take(
        room.loaded, room.task, room.general, longest, room.watcher, "before", memory
    )
    snapshot.write(found, room.task, folder)
    return found


def _affordable(room: Room, memory: Memory) -> General:
    """What of the general suite may be asked after training, and before it where not known."""
    pace = measure_pace(room.loaded.model, room.general)
    seconds = allowance(room.plan["train_seconds"])
    once = afford(room.general, pace, 1, seconds)
    return once if memory.covers(once) else afford(room.general, pace, 2, seconds)


def _cost(room: Room, strength: float) -> dict[str, Any]:
    steps = [row for row in read_lines(room.out / "metrics.jsonl") if "loss" in row]
    seconds = steps[-1]["elapsed_s"] if steps else 0.0
    tokens = sum(row["tokens"] for row in steps)
    names = ("epochs", "learning_rate", "batch_rows", "trained_parameters")
    best = (room.out / "best").resolve().name
    return {
        "base": room.recipe.base,
        "method": name_method(room.recipe.adapt),
        "best": best,
        "strength": strength,
        "steps": len(steps),
        "train_seconds": round(seconds, 1),
        "tokens": tokens,
        "tokens_per_second": round(tokens / seconds) if seconds else 0,
        "peak_bytes": peak_memory(),
        **{name: room.plan[name] for name in names},
        "predicted_train_seconds": room.plan["train_seconds"],
        "questions_sha256": room.task.digest,
    }
