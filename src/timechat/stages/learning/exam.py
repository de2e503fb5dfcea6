"""What a version and the model in use are asked, and what each of them said.

The corrections in other words, the run's earlier test set, the general questions, and what the
user says must not be forgotten. What the model in use answered before is not asked again: it lies
in `evals/` of the run or of its version. The user's own questions are, always: their file may say
something else by now. What follows from two sets of answers is for `verdict`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

from timechat.conversation import Conversation, Message
from timechat.data.pack import encode
from timechat.engine.torch import TorchEngine
from timechat.evals.questions.run import Choosing, Likelihood, choose, likelihoods
from timechat.evals.questions.sample import keep_only, take_share
from timechat.evals.questions.suite import Choice, General, Task
from timechat.evals.scoring.scorers import scorer_name
from timechat.model.load import Loaded
from timechat.model.render import Renderer
from timechat.records import Score
from timechat.stages.evaluating.snapshot import read_choosing, read_reference, reference_fields
from timechat.stages.learning.corrections import Correction
from timechat.stages.runs.versions import Version, in_use, version_in_use
from timechat.stages.watch import Watcher
from timechat.store.files import read_json, read_lines, write_lines

# General questions that are asked at most: enough for an interval, few enough for minutes.
MOST_GENERAL = 400


@dataclass(frozen=True, slots=True)
class Sat:
    """One model's answers: to each checked wording, to the test set, to the general questions, and
    to the user's own."""

    said: tuple[tuple[str, ...], ...]
    scores: tuple[Score, ...]
    answers: tuple[str, ...]
    references: tuple[Likelihood, ...]
    choices: tuple[Choosing, ...]
    own: tuple[Choosing, ...] = ()

    @property
    def tokens(self) -> list[Score]:
        """Of each reference, the share of tokens that the model finds likeliest."""
        return [
            Score(s.item, s.cluster, r.hits / r.num_tokens, "likeliest-tokens/1")
            for s, r in zip(self.scores, self.references, strict=True)
        ]

    def write(self, folder: Path) -> None:
        rows = [
            {"id": s.item, "group": s.cluster, "answer": a, "score": s.value, "scorer": s.scorer}
            | reference_fields(r)
            for s, a, r in zip(self.scores, self.answers, self.references, strict=True)
        ]
        write_lines(folder / "task.jsonl", rows)
        write_lines(folder / "choices.jsonl", map(asdict, (*self.choices, *self.own)))


@dataclass
class Exam:
    """What is asked. `task` is None where the run has no test rows that may be asked."""

    corrections: tuple[Correction, ...]
    system: str
    task: Task | None
    general: General
    max_new_tokens: int
    margin: float
    contradicted: tuple[str, ...]
    watcher: Watcher
    own: tuple[Choice, ...] = ()

    def rephrased(self, renderer: Renderer) -> Task:
        """The corrections in words that are never trained."""
        rows = [
            Conversation(
                f"{c.id}-check-{i}", (*prompt, Message("assistant", c.answer)), group=c.id
            ).with_system(self.system)
            for c in self.corrections
            for i, prompt in enumerate(c.checked)
        ]
        prompts = tuple(tuple(renderer.prompt(row.question)) for row in rows)
        return Task(tuple(rows), prompts, tuple(encode(row, renderer) for row in rows))

    def of_model_in_use(self, run: Path, loaded: Loaded) -> Sat:
        """The model in use, asked only what it was not asked before."""
        version = version_in_use(run)
        folder = _answers_of(run, version)
        known = self.known(folder) if version or _is_of_best(run) else None
        if known is None:
            self.general = take_share(self.general, MOST_GENERAL / len(self.general.choices))
            return self.sit(loaded, "the model in use")
        self.general, sat = known
        name = "the model in use"
        return replace(sat, said=self._say(loaded, name), own=self._ask_own(loaded, name))

    def sit(self, loaded: Loaded, name: str) -> Sat:
        """Ask `loaded` every set, greedily."""
        said = self._say(loaded, name)
        scores: tuple[Score, ...] = ()
        answers: tuple[str, ...] = ()
        references: tuple[Likelihood, ...] = ()
        if self.task is not None:
            answers = self._answer(loaded, self.task, f"{name}: the earlier test set")
            scores = tuple(self.task.score(answers))
            references = tuple(likelihoods(loaded.model, self.task.examples))
        label = f"{name}: {len(self.general.choices)} general questions"
        tick = self.watcher.track(label, len(self.general.choices))
        choices = tuple(choose(loaded.model, self.general.choices, tick))
        return Sat(said, scores, answers, references, choices, self._ask_own(loaded, name))

    def _ask_own(self, loaded: Loaded, name: str) -> tuple[Choosing, ...]:
        if not self.own:
            return ()
        tick = self.watcher.track(f"{name}: {len(self.own)} retention questions", len(self.own))
        return tuple(choose(loaded.model, self.own, tick))

    def _say(self, loaded: Loaded, name: str) -> tuple[tuple[str, ...], ...]:
        task = self.rephrased(loaded.renderer)
        flat = iter(self._answer(loaded, task, f"{name}: the corrections in other words"))
        return tuple(tuple(next(flat) for _ in c.checked) for c in self.corrections)

    def _answer(self, loaded: Loaded, task: Task, label: str) -> tuple[str, ...]:
        tick = self.watcher.track(label, len(task.prompts))
        engine, renderer = TorchEngine(loaded.model), loaded.renderer
        ids = engine.answers(task.prompts, self.max_new_tokens, renderer.stop_ids, tick)
        return tuple(renderer.parse(row) for row in ids)

    def known(self, folder: Path) -> tuple[General, Sat] | None:
        """What lies in `folder` of exactly these questions, and which of the general ones they
        are; None where something is missing. What is said of the corrections is not kept."""
        if not all((folder / f"{name}.jsonl").is_file() for name in ("task", "choices")):
            return None
        chosen = {row["item"]: read_choosing(row) for row in read_lines(folder / "choices.jsonl")}
        part = take_share(self.general, MOST_GENERAL / len(self.general.choices))
        wanted = [c.id for c in part.choices if c.id in chosen]
        general = keep_only(self.general, wanted, (), ())
        if general is None or not wanted:
            return None
        asked = {row["id"]: row for row in read_lines(folder / "task.jsonl") if "hits" in row}
        questions = self.task.questions if self.task else ()
        if not all(q.id in asked and asked[q.id]["scorer"] == scorer_name(q) for q in questions):
            return None
        rows = [asked[q.id] for q in questions]
        sat = Sat(
            said=(),
            scores=tuple(
                Score(q.id, q.cluster, row["score"], row["scorer"])
                for q, row in zip(questions, rows, strict=True)
            ),
            answers=tuple(str(row["answer"]) for row in rows),
            references=tuple(map(read_reference, rows)),
            choices=tuple(chosen[c.id] for c in general.choices),
            own=tuple(chosen[c.id] for c in self.own)
            if all(c.id in chosen for c in self.own)
            else (),
        )
        return general, sat


def _answers_of(run: Path, version: Version | None) -> Path:
    """Where lies what a version said, or the run as it was trained."""
    return run / "evals" / "after" if version is None else version.folder / "evals"


def _is_of_best(run: Path) -> bool:
    """Whether the run's answers on disk are those of the checkpoint in use."""
    report = run / "report.json"
    if not report.is_file():
        return False
    return str(read_json(report)["run"].get("best")) == Path(in_use(run)).name
