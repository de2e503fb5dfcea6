"""What all parts of one run share: rows, model, questions and plan, made before the first step.

Nothing is trained here; `train` does that with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from timechat.conversation import Conversation
from timechat.data.pack import Example, encode
from timechat.errors import DataError, PlanError, RunError
from timechat.evals.questions.own import own_choices
from timechat.evals.questions.suite import General, Task, general_suite, task_suite
from timechat.model.load import Loaded, load, resolve
from timechat.model.method import name_targets
from timechat.model.paths import refuse_unknown
from timechat.model.ranks import ALONE, Ranks
from timechat.recipe import Recipe
from timechat.records import Derived, Plan, Touched
from timechat.stages.environment import environment
from timechat.stages.evaluating.report import say_power
from timechat.stages.preparing.lengths import token_counter
from timechat.stages.preparing.prepare import Prepared, load_prepared, prepare
from timechat.stages.runs.moved import find_base, find_rows
from timechat.stages.runs.record import Record, note, settle
from timechat.stages.stop import Stop
from timechat.stages.training.plan import plan_run
from timechat.stages.watch import Watcher
from timechat.store.files import read_json, write_json
from timechat.training.checkpoint import Identity
from timechat.training.schedule import Settings


@dataclass(slots=True)
class Context:
    """All that the parts of one run share."""

    recipe: Recipe
    out: Path
    watcher: Watcher
    prepared: Prepared
    loaded: Loaded
    train: list[Conversation]
    examples: list[Example]
    validation: list[Example]
    too_long: list[Touched]
    task: Task
    general: General
    plan: Plan
    record: Record
    stop: Stop
    ranks: Ranks = ALONE

    def note(self, event: str, **details: Any) -> None:
        """Add a line to the run's history."""
        note(self.out, event, **details)

    def settings(self, hold: float = 1.0) -> Settings:
        """What the loop needs of recipe and plan; held rows weigh `hold` times the recipe's."""
        train, plan = self.recipe.train, self.plan
        return Settings(
            num_steps=plan["steps"],
            learning_rate=plan["learning_rate"],
            warmup_steps=plan["warmup_steps"],
            weight_decay=train.weight_decay,
            clip=train.clip,
            replay_weight=hold * train.replay_weight,
            average_steps=train.average * plan["steps"],
            schedule=train.schedule,
        )

    def identity(self) -> Identity:
        """What every checkpoint of the run says of its base, recipe and data."""
        return Identity(
            base_path=str(self.loaded.source.folder),
            targets=name_targets(self.recipe.adapt),
            fingerprints=self.record.fingerprints,
            former=self.record.former,
            made_by=self.record.made_by,
        )


def build_context(
    recipe: Recipe,
    out: Path,
    watcher: Watcher,
    stop: Stop | None = None,
    allow: Sequence[str] = (),
    ranks: Ranks = ALONE,
) -> Context:
    """Everything that is needed before the first step: rows, model, questions, plan."""
    prepared = prepared_rows(recipe, out, watcher)
    watcher.say(f"loading {recipe.base}")
    loaded = load(resolve(find_base(recipe, out), watcher.say))
    record = settle(recipe, out, environment(loaded), prepared.card.digest, allow, watcher)
    examples = [encode(row, loaded.renderer) for row in prepared.train]
    refuse_unknown(loaded.model, max(max(e.ids, default=0) for e in examples))
    plan = _kept_plan(out) or plan_run(
        recipe, loaded, prepared.train, examples, (prepared.validation, prepared.test), out
    )
    write_json(out / "plan.json", plan)
    watcher.planned(plan)
    if not plan.fits:
        raise PlanError(plan.refusal)
    if min(plan["batch_rows"], len(examples)) < ranks.count:
        raise PlanError(
            f"{ranks.count} processes cannot share a step of {plan['batch_rows']} of "
            f"{len(examples)} rows: start fewer, or set train.batch_rows"
        )
    kept, fitting, too_long = _fitting(prepared.train, examples, plan["max_length"])
    validation = [encode(row, loaded.renderer) for row in prepared.validation]
    task = task_suite(prepared.test, loaded.renderer, recipe.evaluate.max_questions)
    own = own_choices([Path(name) for name in recipe.evaluate.retention], loaded.renderer)
    general = general_suite(loaded.renderer, own=own)
    say_power(task, watcher)
    return Context(
        recipe,
        out,
        watcher,
        prepared,
        loaded,
        kept,
        fitting,
        validation,
        too_long,
        task,
        general,
        plan,
        record,
        stop or Stop(),
        ranks,
    )


def _kept_plan(out: Path) -> Plan | None:
    """The plan that the run was begun with: what the machine has free now changes no step."""
    path = out / "plan.json"
    if not path.is_file():
        return None
    kept = read_json(path)
    numbers = {name: Derived(**number) for name, number in kept["numbers"].items()}
    if "replay_tokens" not in numbers:
        raise RunError(
            f"{path} is an older version's: go on with that version, or train in a new folder"
        )
    return Plan(True, numbers, kept["machine"]) if kept["fits"] else None


def prepared_rows(recipe: Recipe, out: Path, watcher: Watcher) -> Prepared:
    """The recipe's rows: prepared before, found in the run, or prepared now."""
    if recipe.data.prepared:
        found = find_rows(Path(recipe.data.prepared), out)
        write_json(
            out / "data" / "prepared.json", {"path": str(found.folder), "digest": found.card.digest}
        )
        return found
    if (out / "data" / "card.json").is_file():
        return load_prepared(out / "data")
    if not recipe.data.train:
        raise DataError(
            "the recipe names no data: give data.train a file, or data.prepared a folder"
        )
    count = None if recipe.data.clean.max_tokens is None else token_counter(recipe.base)
    return prepare(recipe.data, out / "data", watcher.say, count)


def _fitting(
    rows: tuple[Conversation, ...], examples: list[Example], longest: int
) -> tuple[list[Conversation], list[Example], list[Touched]]:
    """The rows that fit, encoded, and a ledger line for each that does not."""
    kept: list[Conversation] = []
    fitting: list[Example] = []
    dropped: list[Touched] = []
    for row, example in zip(rows, examples, strict=True):
        if len(example.ids) > longest:
            detail = f"{len(example.ids)} tokens, train.max_length is {longest}"
            dropped.append(Touched(row.source, row.line, "dropped", "too_long", detail))
        elif example.num_targets == 0:
            dropped.append(Touched(row.source, row.line, "dropped", "no_target", "weight 0"))
        else:
            kept.append(row)
            fitting.append(example)
    if not kept:
        raise DataError("no training row fits: raise train.max_length")
    return kept, fitting, dropped
