"""`compare` on the command line: a run's before and after again, or any two models."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from timechat.conversation import Conversation
from timechat.data.sources import read_questions
from timechat.errors import DataError, RecipeError
from timechat.evals.suite import general_suite, task_suite
from timechat.model.load import Loaded, load, load_tokenizer, resolve
from timechat.model.render import Renderer
from timechat.recipe import Evaluate, load_recipe
from timechat.records import Check, Report
from timechat.stages import snapshot
from timechat.stages.compare import build_report, say_power
from timechat.stages.prepare import load_prepared, rows_of_run
from timechat.stages.watch import Watcher
from timechat.store import read_json

MAX_NEW_TOKENS = 96


@dataclass(frozen=True, slots=True)
class _Known:
    """The checks and costs of the run that is compared, where one run is."""

    checks: list[Check] = field(default_factory=list[Check])
    costs: dict[str, Any] = field(default_factory=dict[str, Any])
    max_new_tokens: int = MAX_NEW_TOKENS
    margin: float = Evaluate().retention_margin


def versus(
    models: Sequence[str],
    questions: Path | None,
    system: str,
    out: Path | None,
    watcher: Watcher,
) -> tuple[Report, Path]:
    """Compare one run with its base, or model A with model B; returns the report and its folder.

    Both models get the same token ids, so their tokenizers must be the same.
    """
    if len(models) not in (1, 2):
        raise RecipeError("compare takes RUN, or two models A B")
    run = Path(models[0].partition("@")[0])
    again = _Known()
    names = list(models)
    if len(models) == 1:
        again = _known(run)
        names = [load_recipe(run / "recipe.yaml").base, models[0]]
    rows = _questions(questions, run, system)
    return _compare(names, rows, again, _target(out, run if len(models) == 1 else None), watcher)


def _known(run: Path) -> _Known:
    """What a run's own report already holds and asking again does not change."""
    if not (run / "report.json").is_file():
        raise RecipeError(f"{run} is no finished run: give a run, or two models A B")
    report = read_json(run / "report.json")
    checks = [Check(**row) for row in report["checks"] if row["name"] != "retention"]
    plan = read_json(run / "plan.json")
    longest = plan["numbers"]["max_new_tokens"]["value"]
    margin = load_recipe(run / "recipe.yaml").evaluate.retention_margin
    return _Known(checks, report["run"], longest, margin)


def _questions(questions: Path | None, run: Path, system: str) -> list[Conversation]:
    if questions is not None:
        return [row.with_system(system) for row in read_questions(questions)]
    if (run / "recipe.yaml").is_file():
        return list(load_prepared(rows_of_run(run)).test)
    raise DataError("no questions: name a file of conversation rows with --questions")


def _target(out: Path | None, run: Path | None) -> Path:
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        return out
    return run if run is not None else Path(tempfile.mkdtemp(prefix="timechat-compare-"))


def _compare(
    names: list[str],
    rows: list[Conversation],
    known: _Known,
    out: Path,
    watcher: Watcher,
) -> tuple[Report, Path]:
    sources = [resolve(name, watcher.say) for name in names]
    renderer = Renderer(load_tokenizer(sources[0].folder))
    task = task_suite(rows, renderer, 400)
    general = general_suite(renderer)
    say_power(task, watcher)
    shots: list[snapshot.Snapshot] = []
    for name, source, label in zip(names, sources, ("before", "after"), strict=True):
        watcher.say(f"loading {name}")
        loaded = load(source)
        _same_vocabulary(renderer, loaded)
        shots.append(snapshot.take(loaded, task, general, known.max_new_tokens, watcher, label))
        snapshot.write(shots[-1], task, out / "evals" / label)
    costs = known.costs or {"before": names[0], "after": names[1]}
    report = build_report(out, task, shots[0], shots[1], known.margin, known.checks, costs)
    return report, out


def _same_vocabulary(renderer: Renderer, loaded: Loaded) -> None:
    if renderer.tokenizer.get_vocab() != loaded.tokenizer.get_vocab():
        raise RecipeError(
            f"{loaded.source.name} has another vocabulary than the first model: their likelihoods "
            "cannot be compared token by token"
        )
