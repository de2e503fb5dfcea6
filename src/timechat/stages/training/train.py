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
from timechat.evals.questions.suite import OWN, Decoding, General
from timechat.model.adapt import adapters
from timechat.model.load import load, resolve
from timechat.model.machine import peak_memory
from timechat.model.method import name_method
from timechat.model.ranks import Ranks, join
from timechat.model.repeat import repeatable
from timechat.recipe import Recipe
from timechat.recipe_file import load_recipe
from timechat.records import Plan, Report
from timechat.stages.evaluating import snapshot
from timechat.stages.evaluating.budget import afford, allowance, measure_pace
from timechat.stages.evaluating.cache import AnswerCache
from timechat.stages.evaluating.checks import check_export
from timechat.stages.evaluating.report import Extra, build_report
from timechat.stages.runs.record import claim, make_room
from timechat.stages.stop import Stop
from timechat.stages.training.card import finish_card
from timechat.stages.training.context import Context, build_context, prepared_rows
from timechat.stages.training.follow import follow, meet, part
from timechat.stages.training.health import tell_skipped
from timechat.stages.training.outline import is_elsewhere, outline
from timechat.stages.training.tune import tune
from timechat.stages.watch import Watcher
from timechat.store.claims import owned
from timechat.store.files import read_lines
from timechat.store.folders import remove_folder, sweep_run


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
            return _run(_open_context(recipe, out, watcher or Watcher(), stop, allow, ranks))


def _open_context(
    recipe: Recipe,
    out: Path,
    watcher: Watcher,
    stop: Stop | None,
    allow: Sequence[str],
    ranks: Ranks,
) -> Context:
    """The run's context: of a new run, or of the one that is in `out`."""
    sweep_run(out)
    is_new = claim(recipe, out, allow)
    try:
        context = build_context(recipe, out, watcher, stop, allow, ranks)
    except UserError:
        if is_new:  # nothing that looks like a run is left of a recipe that cannot be one
            remove_folder(out)
        raise
    context.note("started", process=os.getpid(), machine=context.plan.machine["name"])
    return context


def _run(context: Context) -> Run:
    recipe, out, watcher = context.recipe, context.out, context.watcher
    num_general = sum(choice.tag != OWN for choice in context.general.choices)
    before = _before(context)
    meet(context)
    checks, strength = tune(context)
    if context.ranks.count > 1 and not adapters(context.loaded.model):
        # The rows of the weights lie apart: what is asked is what was saved.
        context.loaded = replace(context.loaded, model=load(resolve(str(out))).model)
    after = snapshot.take(
        context.loaded,
        context.task,
        context.general,
        context.plan["max_new_tokens"],
        watcher,
        "after",
    )
    snapshot.write(after, context.task, out / "evals" / "after")
    checks.append(check_export(context.loaded, context.task.examples, out / "best"))
    if skipped := tell_skipped(out):
        watcher.say(skipped)
    report = build_report(
        out,
        context.task,
        before,
        after,
        recipe.evaluate.retention_margin,
        checks,
        _cost(context, strength),
        Extra(
            findings=(skipped,) if skipped else (),
            num_general=num_general,
            decoding=Decoding(context.plan["max_new_tokens"], context.loaded.renderer.template),
        ),
    )
    finish_card(context, report)
    context.note("finished", verdict=report.verdict)
    return Run(out, part(context.ranks, report))


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
            return build_context(recipe, out, watcher).plan
        plan = outline(recipe, prepared_rows(recipe, out, watcher), out)
    watcher.planned(plan)
    return plan


def _before(context: Context) -> snapshot.Snapshot:
    """The base's answers, found or asked; the context keeps the general questions of both sides."""
    folder = context.out / "evals" / "before"
    found = snapshot.read(folder, context.task)
    asked = snapshot.asked_in(found, context.general) if found else None
    if found is not None and asked is not None:
        context.general = asked
        return found
    cache = AnswerCache(context.loaded, context.watcher)
    context.general = _affordable(context, cache)
    longest = context.plan["max_new_tokens"]
    found = snapshot.take(
        context.loaded, context.task, context.general, longest, context.watcher, "before", cache
    )
    snapshot.write(found, context.task, folder)
    return found


def _affordable(context: Context, cache: AnswerCache) -> General:
    """What of the general suite may be asked after training, and before it where not known."""
    pace = measure_pace(context.loaded.model, context.general)
    seconds = allowance(context.plan["train_seconds"])
    once = afford(context.general, pace, 1, seconds)
    return once if cache.covers(once) else afford(context.general, pace, 2, seconds)


def _cost(context: Context, strength: float) -> dict[str, Any]:
    steps = [row for row in read_lines(context.out / "metrics.jsonl") if "loss" in row]
    seconds = steps[-1]["elapsed_s"] if steps else 0.0
    tokens = sum(row["tokens"] for row in steps)
    names = ("epochs", "learning_rate", "batch_rows", "trained_parameters")
    best = (context.out / "best").resolve().name
    return {
        "base": context.recipe.base,
        "method": name_method(context.recipe.adapt),
        "best": best,
        "strength": strength,
        "steps": len(steps),
        "train_seconds": round(seconds, 1),
        "tokens": tokens,
        "tokens_per_second": round(tokens / seconds) if seconds else 0,
        "peak_bytes": peak_memory(),
        **{name: context.plan[name] for name in names},
        "predicted_train_seconds": context.plan["train_seconds"],
        "questions_sha256": context.task.digest,
    }
