"""Three sets asked of the model in use and of the new version, and whether it may be offered.

The corrections asked in other words, the run's earlier test set, and the general questions. What
the model in use answered before is not asked again: it lies in `evals/` of the run or of its
version. A version is offered where it learned what it was told, and lost neither of the other two.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from timechat.conversation import Conversation, Message
from timechat.data.pack import encode
from timechat.engine.torch import TorchEngine
from timechat.evals.compare import compare
from timechat.evals.power import MIN_CLUSTERS, MIN_ITEMS
from timechat.evals.run import Choosing, choose
from timechat.evals.sample import keep_only, take_share
from timechat.evals.scorers import scorer_name
from timechat.evals.suite import General, Task
from timechat.model.load import Loaded
from timechat.model.render import Renderer
from timechat.records import Measure, Score
from timechat.stages.corrections import Correction
from timechat.stages.versions import in_use, version_in_use
from timechat.stages.watch import Watcher
from timechat.store import read_json, read_lines, write_lines

# General questions that are asked at most: enough for an interval, few enough for minutes.
MOST_GENERAL = 400
# The share of the corrections that must be right in other words.
LEARNED = 2 / 3
NUM_SAMPLES = 100


@dataclass(frozen=True, slots=True)
class Sat:
    """One model's answers: to each checked wording, to the test set, to the general questions."""

    said: tuple[tuple[str, ...], ...]
    scores: tuple[Score, ...]
    answers: tuple[str, ...]
    choices: tuple[Choosing, ...]

    def write(self, folder: Path) -> None:
        rows = [
            {"id": s.item, "group": s.cluster, "answer": a, "score": s.value, "scorer": s.scorer}
            for s, a in zip(self.scores, self.answers, strict=True)
        ]
        write_lines(folder / "task.jsonl", rows)
        write_lines(folder / "choices.jsonl", map(asdict, self.choices))


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
        folder = run / "evals" / "after" if version is None else version_folder(run, version.number)
        known = self.known(folder) if version or _is_of_best(run) else None
        if known is None:
            self.general = take_share(self.general, MOST_GENERAL / len(self.general.choices))
            return self.sit(loaded, "the model in use")
        self.general, scores, answers, choices = known
        return Sat(self._say(loaded, "the model in use"), scores, answers, choices)

    def sit(self, loaded: Loaded, name: str) -> Sat:
        """Ask `loaded` all three sets, greedily."""
        said = self._say(loaded, name)
        scores: tuple[Score, ...] = ()
        answers: tuple[str, ...] = ()
        if self.task is not None:
            answers = self._answer(loaded, self.task, f"{name}: the earlier test set")
            scores = tuple(self.task.score(answers))
        label = f"{name}: {len(self.general.choices)} general questions"
        tick = self.watcher.track(label, len(self.general.choices))
        return Sat(said, scores, answers, tuple(choose(loaded.model, self.general.choices, tick)))

    def _say(self, loaded: Loaded, name: str) -> tuple[tuple[str, ...], ...]:
        task = self.rephrased(loaded.renderer)
        flat = iter(self._answer(loaded, task, f"{name}: the corrections in other words"))
        return tuple(tuple(next(flat) for _ in c.checked) for c in self.corrections)

    def _answer(self, loaded: Loaded, task: Task, label: str) -> tuple[str, ...]:
        tick = self.watcher.track(label, len(task.prompts))
        engine, renderer = TorchEngine(loaded.model), loaded.renderer
        ids = engine.answers(task.prompts, self.max_new_tokens, renderer.stop_ids, tick)
        return tuple(renderer.parse(row) for row in ids)

    def known(
        self, folder: Path
    ) -> tuple[General, tuple[Score, ...], tuple[str, ...], tuple[Choosing, ...]] | None:
        """What lies in `folder` of exactly these questions; None where something is missing."""
        if not all((folder / f"{name}.jsonl").is_file() for name in ("task", "choices")):
            return None
        chosen = {row["item"]: row for row in read_lines(folder / "choices.jsonl")}
        part = take_share(self.general, MOST_GENERAL / len(self.general.choices))
        wanted = [c.id for c in part.choices if c.id in chosen]
        general = keep_only(self.general, wanted, (), ())
        if general is None or not wanted:
            return None
        choices = tuple(
            replace(Choosing(**chosen[c.id]), values=tuple(chosen[c.id]["values"]))
            for c in general.choices
        )
        asked = {row["id"]: row for row in read_lines(folder / "task.jsonl")}
        questions = self.task.questions if self.task else ()
        if not all(q.id in asked and asked[q.id]["scorer"] == scorer_name(q) for q in questions):
            return None
        answers = tuple(str(asked[q.id]["answer"]) for q in questions)
        scores = tuple(
            Score(q.id, q.cluster, asked[q.id]["score"], asked[q.id]["scorer"]) for q in questions
        )
        return general, scores, answers, choices


def version_folder(run: Path, number: int) -> Path:
    return run / "learned" / f"{number:03d}" / "evals"


def judge(run: Path, exam: Exam, before: Sat, after: Sat) -> dict[str, Any]:
    """The part of `version.json` that says what changed, in figures and in plain words."""
    learned = _learned(exam, before, after)
    sets: dict[str, Any] = {"corrections": learned}
    reasons: list[str] = []
    if not learned["n"]:
        reasons.append("no correction can be asked in other words: give another wording of one")
    elif learned["verdict"] != "learned":
        reasons.append(
            f"only {learned['right_after']} of {learned['n']} corrections are right in other words"
        )
    compared = _compare(exam, before, after)
    if version_in_use(run) is not None and (first := exam.known(run / "evals" / "after")):
        _, scores, answers, choices = first
        if [c.item for c in choices] == [c.item for c in after.choices]:
            start = _compare(exam, Sat((), scores, answers, choices), after)
            compared |= {f"{name}_since_trained": found for name, found in start.items()}
    for name, measure in compared.items():
        verdict, reason = _allow(name, measure, exam.margin)
        sets[name] = {**asdict(measure), "verdict": verdict}
        if reason:
            reasons.append(reason)
    decision = "refused" if reasons else "offered"
    return {
        "decision": decision,
        "reasons": reasons,
        "sets": sets,
        "samples": _samples(exam, before, after),
        "test_samples": _changed(exam, before, after),
    }


def _learned(exam: Exam, before: Sat, after: Sat) -> dict[str, Any]:
    def right(sat: Sat) -> list[bool]:
        """Of each correction, whether at least half of its checked wordings are answered right."""
        shares = [
            sum(map(c.score, said)) / len(said)
            for c, said in zip(exam.corrections, sat.said, strict=True)
            if said
        ]
        return [share >= 0.5 for share in shares]

    old, new = right(before), right(after)
    n = len(new)
    is_learned = n > 0 and sum(new) >= LEARNED * n and sum(new) >= sum(old)
    return {
        "right_before": sum(old),
        "right_after": sum(new),
        "n": n,
        "questions": sum(len(c.checked) for c in exam.corrections),
        "made_by_rule": sum(c.made for c in exam.corrections),
        "verdict": "learned" if is_learned else "not_learned",
    }


def _compare(exam: Exam, before: Sat, after: Sat) -> dict[str, Measure]:
    found: dict[str, Measure] = {}
    options: dict[str, Any] = {"kind": "retention", "margin": exam.margin, "unit": "share"}
    if after.scores:
        found["earlier"] = compare("earlier test set", before.scores, after.scores, **options)
    sides = ([choice.score for choice in sat.choices] for sat in (before, after))
    found["retention"] = compare("general ability", *sides, **options)
    return found


def _allow(name: str, measure: Measure, margin: float) -> tuple[str, str]:
    """The verdict of one set, and why it forbids the version; an empty reason where it does not.

    Few questions prove nothing, either way: there a loss of more than one question, and more than
    the margin, forbids.
    """
    low = 100 * measure.ci95[0]
    about = measure.name + (" since the run was trained" if name.endswith("_since_trained") else "")
    if measure.n >= MIN_ITEMS and measure.clusters >= MIN_CLUSTERS:
        if measure.verdict == "kept":
            return "kept", ""
        what = "was lost" if measure.verdict == "lost" else "may have been lost"
        return measure.verdict, (
            f"{about} {what}: {measure.before:.1%} to {measure.after:.1%}, at worst {low:+.1f} "
            f"points where {-100 * margin:g} are allowed"
        )
    lost = -measure.difference * measure.n
    if lost <= max(1.0, margin * measure.n):
        return "too_few", ""
    return "lost", f"{about}: {lost:.0f} of {measure.n} questions are answered worse"


def _samples(exam: Exam, before: Sat, after: Sat) -> list[dict[str, Any]]:
    rows = [
        {
            "correction": c.id,
            "asked": c.question,
            "question": prompt[-1].content,
            "made_by_rule": bool(c.made),
            "before": old,
            "after": new,
            "reference": c.answer,
            "right_before": bool(c.score(old)),
            "right_after": bool(c.score(new)),
        }
        for c, olds, news in zip(exam.corrections, before.said, after.said, strict=True)
        for prompt, old, new in zip(c.checked, olds, news, strict=True)
    ]
    return rows[:NUM_SAMPLES]


def _changed(exam: Exam, before: Sat, after: Sat) -> list[dict[str, Any]]:
    """Test questions whose score changed, those that lost first."""
    questions = exam.task.questions if exam.task else ()
    rows = [
        {
            "question": q.question[-1].content,
            "before": before.answers[i],
            "after": after.answers[i],
            "reference": q.reference,
            "change": after.scores[i].value - before.scores[i].value,
        }
        for i, q in enumerate(questions)
        if after.scores[i].value != before.scores[i].value
    ]
    return sorted(rows, key=lambda row: row["change"])[:NUM_SAMPLES]


def _is_of_best(run: Path) -> bool:
    """Whether the run's answers on disk are those of the checkpoint in use."""
    report = run / "report.json"
    if not report.is_file():
        return False
    return str(read_json(report)["run"].get("best")) == Path(in_use(run)).name
