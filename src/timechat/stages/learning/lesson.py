"""A lesson: a small run inside the run, out of what the run itself has.

Training goes on from the checkpoint in use, with its own adapter: what comes out is one adapter on
the same base, however often a run has learned, and it loads and exports like the first. Beside the
corrections, each step holds rows of the run and general text to what the model in use says of
them; where nothing changed, their gradient is zero. What was learned and what was lost is measured
by `verdict`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from timechat.data.pack import Example, encode
from timechat.evals.questions.own import own_choices
from timechat.evals.questions.suite import general_suite, task_suite
from timechat.manifest import newest
from timechat.model.load import Loaded, load, load_tokenizer, resolve
from timechat.model.method import begin_again
from timechat.model.recompute import recompute_layers
from timechat.model.render import Renderer
from timechat.recipe import Recipe
from timechat.recipe_file import load_recipe
from timechat.records import Derived, Plan
from timechat.stages.environment import environment
from timechat.stages.learning.corrections import Gathered, drop_contradicted
from timechat.stages.learning.curriculum import (
    LEARNING,
    REHEARSING,
    Lengths,
    correction_row,
    plan_lesson,
)
from timechat.stages.learning.exam import Exam, Sat
from timechat.stages.learning.progress import Told
from timechat.stages.learning.verdict import judge
from timechat.stages.preparing.prepare import Prepared, load_prepared, rows_of_run
from timechat.stages.runs.record import Record, note
from timechat.stages.runs.versions import (
    VERSION,
    Version,
    in_use,
    versions,
)
from timechat.stages.stop import Stop
from timechat.stages.training.context import Context
from timechat.stages.training.learner import Learner
from timechat.store.files import read_json, write_json, write_lines
from timechat.training.trainer import Trainer

# What is held weighs twice what it weighs in a run (LAB.md, learning from corrections).
HOLD = 2.0
# Three quarters of the rate at which a fresh adapter begins: this one is nearly where it should be.
RATE_SHARE = 0.75
WORD_DROPOUT = 0.2
# Rows of the run's validation that are looked at while it learns, three times in all.
LOOKED_AT, LOOKS = 12, 2
# What a version is being made of, so that a lesson which was cut short is known again.
ABOUT = "lesson.json"


class Lesson:
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
        change = begin_again(self.loaded.model, self.recipe.adapt)
        trainer = Trainer(self.loaded.model, context.settings(HOLD), change)
        learner = Learner(context, trainer, self.loaded, context.identity())
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
        rows, later = sum(LEARNING), sum(REHEARSING)
        step_tokens = round(mean * rows)
        share, held = self.recipe.train.replay, self.recipe.train.replay_weight
        rate = numbers["learning_rate"].value
        short = all(len(c.question.split()) <= 32 for c in self.gathered.corrections)
        numbers |= {
            "rows": Derived(len(examples), "the corrections in every wording that is trained"),
            "steps": Derived(
                steps, f"{learning} to learn, then {self.lengths.rehearsing} to rehearse the run"
            ),
            "batch_rows": Derived(
                rows, f"corrections and rows of the run together; {later} while it rehearses"
            ),
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
