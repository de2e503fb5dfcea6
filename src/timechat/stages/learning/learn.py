"""`learn`: a run learns from its corrections, and the new version is offered if nothing was lost.

One folder a version (`stages.runs.versions`). Training goes on from the checkpoint in use, with
its own adapter: what comes out is one adapter on the same base, however often a run has learned,
and it loads and exports like the first. Beside the corrections, each step holds rows of the run
and general text to what the model in use says of them; where nothing changed, their gradient is
zero. What was learned and what was lost is measured by `verdict`.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from timechat.data.pack import Example, encode
from timechat.errors import RunError, StoppedError
from timechat.evals.own import own_choices
from timechat.evals.suite import general_suite, task_suite
from timechat.manifest import newest
from timechat.model.load import Loaded, load, load_tokenizer, resolve
from timechat.model.method import begin_again, name_targets
from timechat.model.recompute import recompute_layers
from timechat.model.render import Renderer
from timechat.recipe.reading import load_recipe
from timechat.recipe.schema import Adapt, Recipe
from timechat.records import Derived, Plan
from timechat.stages.environment import environment
from timechat.stages.learning.corrections import Gathered, drop_contradicted, find_corrections
from timechat.stages.learning.curriculum import STEP_ROWS, Lengths, correction_row, plan_lesson
from timechat.stages.learning.exam import Exam, Sat
from timechat.stages.learning.progress import Told
from timechat.stages.learning.verdict import judge
from timechat.stages.preparing.prepare import Prepared, load_prepared, rows_of_run
from timechat.stages.runs.record import Record, note
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
from timechat.stages.training.context import Context
from timechat.stages.training.learner import Learner
from timechat.stages.watch import Watcher
from timechat.store import owned, read_json, remove_folder, sweep_run, write_json, write_lines
from timechat.training import checkpoint
from timechat.training.schedule import Settings
from timechat.training.trainer import Trainer

# What is held weighs twice what it weighs in a run (LAB.md, learning from corrections).
HOLD = 2.0
# Three quarters of the rate at which a fresh adapter begins: this one is nearly where it should be.
RATE_SHARE = 0.75
WORD_DROPOUT = 0.2
# Rows of the run's validation that are looked at while it learns, three times in all.
LOOKED_AT, LOOKS = 12, 2
ABOUT = "lesson.json"


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
        lesson = _Lesson(run, folder, gathered, told, stop or Stop(), seed)
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


class _Lesson:
    """One version on its way."""

    def __init__(
        self, run: Path, folder: Path, gathered: Gathered, told: Told, stop: Stop, seed: int
    ) -> None:
        self.run, self.folder, self.gathered, self.seed = run, folder, gathered, seed
        self.watcher, self.stop = told, stop
        self.recipe: Recipe = load_recipe(run / "recipe.yaml")
        self.prepared: Prepared = load_prepared(rows_of_run(run))
        told.say(f"{len(gathered.corrections)} corrections to learn; loading {run}")
        self.loaded: Loaded = load(resolve(str(run), told.say))
        system = self.prepared.card.system or self.recipe.data.system
        self.rows = [
            correction_row(c, i, prompt, system)
            for c in gathered.corrections
            for i, prompt in enumerate(c.trained)
        ]
        self.lengths = Lengths.of(len(gathered.corrections))
        self.own, self.contradicted = drop_contradicted(self.prepared.train, gathered.corrections)
        self.exam = self._exam(system)
        self.before: Sat
        self.after: Sat

    def take(self) -> None:
        """Ask the model in use, learn, and ask again."""
        self.before = self.exam.of_model_in_use(self.run, self.loaded)
        context = self._context()
        if context.plan["recompute"]:
            recompute_layers(self.loaded.model)
        trainer = Trainer(
            self.loaded.model, _settings(context), begin_again(self.loaded.model, self.recipe.adapt)
        )
        learner = Learner(context, trainer, self.loaded, _identity(context))
        learner.steps = plan_lesson(context, self.lengths, self.own, self.seed)
        learner.run()
        trainer.settle()
        trainer.model.eval()
        self.after = self.exam.sit(self.loaded, "the new version")
        self.after.write(self.folder / "evals")

    def finish(self, began: float) -> Version:
        """Compare, decide, and write it down: from here on the version exists."""
        done = newest(self.folder)
        assert done is not None
        found = judge(self.run, self.exam, self.before, self.after)
        content: dict[str, Any] = {
            "number": int(self.folder.name),
            "parent": in_use(self.run),
            "checkpoint": done.relative_to(self.run).as_posix(),
            "corrections": self.gathered.digest,
            "num_corrections": len(self.gathered.corrections),
            "left_out": self.gathered.left_out,
            "contradicted": [*self.contradicted, *self.exam.contradicted],
            "seed": self.seed,
            "seconds": round(time.monotonic() - began, 1),
            "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            **found,
        }
        write_json(self.folder / VERSION, content)
        note(self.run, "learned", version=content["number"], decision=content["decision"])
        return next(v for v in versions(self.run) if v.number == content["number"])

    def _exam(self, system: str) -> Exam:
        kept, contradicted = drop_contradicted(self.prepared.test, self.gathered.corrections)
        plan = read_json(self.run / "plan.json")["numbers"]
        longest = max(
            len(self.loaded.tokenizer(c.answer)["input_ids"]) for c in self.gathered.corrections
        )
        base = Renderer(load_tokenizer(self.loaded.source.folder))
        return Exam(
            corrections=self.gathered.corrections,
            system=system,
            task=task_suite(kept, self.loaded.renderer, self.recipe.evaluate.max_questions)
            if kept
            else None,
            general=general_suite(base),
            own=own_choices([Path(name) for name in self.recipe.evaluate.retention], base),
            max_new_tokens=max(plan["max_new_tokens"]["value"], math.ceil(1.5 * longest) + 8),
            margin=self.recipe.evaluate.retention_margin,
            contradicted=tuple(contradicted),
            watcher=self.watcher,
        )

    def _context(self) -> Context:
        """The context of a small run in the version's folder, out of what the run itself has."""
        examples = [encode(row, self.loaded.renderer) for row in self.rows]
        held_out = [encode(row, self.loaded.renderer) for row in self.prepared.validation]
        plan = self._plan(examples)
        write_json(self.folder / "plan.json", plan)
        write_lines(self.folder / "rows.jsonl", [row.to_dict() for row in self.rows])
        train = self.recipe.train.model_copy(update={"seed": self.seed})
        return Context(
            recipe=self.recipe.model_copy(update={"train": train}),
            out=self.folder,
            watcher=self.watcher,
            prepared=self.prepared,
            loaded=self.loaded,
            train=self.rows,
            examples=examples,
            validation=(held_out or examples)[:LOOKED_AT],
            too_long=[],
            task=self.exam.rephrased(self.loaded.renderer),
            general=self.exam.general,
            plan=plan,
            record=self._record(),
            stop=self.stop,
        )

    def _plan(self, examples: Sequence[Example]) -> Plan:
        """The run's own plan, with this lesson's numbers in it."""
        kept = read_json(self.run / "plan.json")
        numbers = {name: Derived(**number) for name, number in kept["numbers"].items()}
        steps, learning = self.lengths.steps, self.lengths.learning
        mean = sum(len(e.ids) for e in examples) / len(examples)
        step_tokens = round(mean * STEP_ROWS)
        share, held = self.recipe.train.replay, self.recipe.train.replay_weight
        rate = numbers["learning_rate"].value
        short = all(len(c.question.split()) <= 32 for c in self.gathered.corrections)
        numbers |= {
            "rows": Derived(len(examples), "the corrections in every wording that is trained"),
            "steps": Derived(
                steps, f"{learning} to learn, then {self.lengths.rehearsing} to rehearse the run"
            ),
            "batch_rows": Derived(STEP_ROWS, "corrections and rows of the run together"),
            "epochs": Derived(
                round(self.lengths.views / len(examples), 1), "times that each wording is seen"
            ),
            "step_tokens": Derived(step_tokens, "mean row × rows a step"),
            "replay_tokens": Derived(
                round(step_tokens * share / (1 - min(share, 0.9))) if held else 0,
                "train.replay: so many general tokens beside those of a step",
            ),
            "learning_rate": Derived(rate * RATE_SHARE, f"{RATE_SHARE:g} of the run's own"),
            "warmup_steps": Derived(max(1, steps // 10), "10% of the steps"),
            "word_dropout": Derived(WORD_DROPOUT if short else 0.0, "short questions alone"),
            "validations": Derived(LOOKS, "at the beginning, half-way and at the end"),
            "validate_every": Derived(math.ceil(steps / LOOKS), "steps / validations"),
            "checkpoint_every": Derived(math.ceil(steps / 4), "four times"),
            "max_new_tokens": Derived(
                self.exam.max_new_tokens, "the run's, or 1.5 × the longest correction + 8"
            ),
        }
        return Plan(True, numbers, kept["machine"])

    def _record(self) -> Record:
        now = environment(self.loaded)
        about = read_json(self.folder / ABOUT)
        prints = {
            "base": str(now["base"]["digest"]),
            "data": self.gathered.digest,
            "recipe": f"{about['parent']} seed {self.seed}",
        }
        return Record(prints, made_by=now["made_by"])


def _settings(context: Context) -> Settings:
    train, plan = context.recipe.train, context.plan
    return Settings(
        num_steps=plan["steps"],
        learning_rate=plan["learning_rate"],
        warmup_steps=plan["warmup_steps"],
        weight_decay=train.weight_decay,
        clip=train.clip,
        replay_weight=HOLD * train.replay_weight,
        average_steps=train.average * plan["steps"],
        schedule=train.schedule,
    )


def _identity(context: Context) -> checkpoint.Identity:
    adapt: Adapt = context.recipe.adapt
    return checkpoint.Identity(
        base_path=str(context.loaded.source.folder),
        targets=name_targets(adapt),
        fingerprints=context.record.fingerprints,
        made_by=context.record.made_by,
    )
