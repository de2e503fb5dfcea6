"""What a format costs: the evaluated model and the export on the same questions, with intervals.

The evaluated side of a run was asked already, and its answers lie in `evals/after`: they are read,
and only the export is asked, the same questions in the same precision. Where there is no such
record both are asked, the general suite as far as `budget` goes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from timechat.conversation import Conversation
from timechat.engine.torch import TorchEngine
from timechat.evals.questions.own import own_choices
from timechat.evals.questions.suite import General, Task, general_suite, task_suite
from timechat.model.load import Loaded, Source, load_tokenizer
from timechat.model.render import Renderer
from timechat.recipe import Evaluate
from timechat.recipe_file import load_recipe
from timechat.records import Measure
from timechat.stages.evaluating import snapshot
from timechat.stages.evaluating.budget import afford, allowance, measure_pace
from timechat.stages.evaluating.report import measure_all
from timechat.stages.watch import Watcher
from timechat.store.files import read_json

# As `compare` asks where no run says otherwise.
MAX_NEW_TOKENS = 96
# Questions whose answers are timed to say how long all will take.
TIMED = 4


@dataclass(frozen=True, slots=True)
class Known:
    """What the run that is exported says of how it was asked."""

    folder: Path | None
    max_new_tokens: int
    max_questions: int
    margin: float
    retention: tuple[str, ...] = ()


class Asked:
    """The questions of one export, and the evaluated model's answers to them."""

    def __init__(
        self, source: Source, run: Path | None, rows: Sequence[Conversation], watcher: Watcher
    ) -> None:
        self.watcher = watcher
        self.known = _known(run, source)
        # Rendered as before training, by the base's own template: the rows carry their system turn.
        renderer = Renderer(load_tokenizer(source.folder))
        self.task = task_suite(rows, renderer, self.known.max_questions)
        own = own_choices([Path(name) for name in self.known.retention], renderer)
        self.general = general_suite(renderer, own=own)
        self.before = self._recorded()

    def _recorded(self) -> snapshot.Snapshot | None:
        if self.known.folder is None:
            return None
        found = snapshot.read(self.known.folder, self.task)
        asked = snapshot.asked_in(found, self.general) if found else None
        if asked is None:
            return None
        self.general = asked
        self.watcher.say(f"the evaluated model's answers are read from {self.known.folder}")
        return found

    def ask_evaluated(self, loaded: Loaded) -> None:
        """Ask the evaluated model what is not known of it."""
        if self.before is None:
            pace = measure_pace(loaded.model, self.general)
            self.general = afford(self.general, pace, 2, allowance(0))
            self.before = self._ask(loaded, "evaluated")

    def compare(self, exported: Loaded) -> tuple[Measure, ...]:
        """Ask the export, and set it beside the evaluated model."""
        assert self.before is not None
        after = self._ask(exported, "exported")
        return tuple(measure_all(self.task, self.before, after, self.known.margin))

    def _ask(self, loaded: Loaded, label: str) -> snapshot.Snapshot:
        seconds = _expected_seconds(loaded, self.task, self.general, self.known.max_new_tokens)
        self.watcher.say(
            f"asking the {label} model {len(self.task.prompts)} questions of the task and "
            f"{len(self.general.choices)} general ones: about {seconds:.0f} s"
        )
        longest = self.known.max_new_tokens
        return snapshot.take(loaded, self.task, self.general, longest, self.watcher, label)


def _expected_seconds(loaded: Loaded, task: Task, general: General, longest: int) -> float:
    """By the pace of the first questions of each kind."""
    some = task.prompts[:TIMED]
    started = time.perf_counter()
    TorchEngine(loaded.model).answers(some, longest, loaded.renderer.stop_ids)
    answering = (time.perf_counter() - started) * len(task.prompts) / len(some)
    return answering + measure_pace(loaded.model, general).seconds(general)


def _known(run: Path | None, source: Source) -> Known:
    if run is None or not (run / "plan.json").is_file():
        default = Evaluate()
        return Known(None, MAX_NEW_TOKENS, default.max_questions, default.retention_margin)
    about = load_recipe(run / "recipe.yaml").evaluate
    longest = int(read_json(run / "plan.json")["numbers"]["max_new_tokens"]["value"])
    best = (run / "best").resolve()
    is_best = best in ((source.adapter or source.folder).resolve(), source.folder.resolve())
    folder = run / "evals" / "after" if is_best else None
    margin = about.retention_margin
    return Known(folder, longest, about.max_questions, margin, about.retention)
