"""Whether a version may be offered, from what it and the model in use said in the exam.

It is offered where it learned what it was told, and lost neither the run's earlier test set nor
general ability, nor what the user asks beside it.

The test set is judged twice. Token by token, over the references, it can show that no more than the
margin was lost; whole answers cannot: of a model that knows half of them a quarter turn over in any
training, some each way, and their interval is as wide as twenty points (LAB.md). So whole answers
forbid a version where they are shown to be fewer, and need not prove that they are not.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from timechat.evals.statistics.compare import compare
from timechat.evals.statistics.power import MIN_CLUSTERS, MIN_ITEMS
from timechat.records import Measure
from timechat.stages.evaluating.report import OWN_NAME
from timechat.stages.learning.exam import Exam, Sat
from timechat.stages.runs.versions import version_in_use

# The test set's two measures, and what is added where they are held against the run as trained.
BY_TOKENS, BY_ANSWERS = "earlier", "earlier_answers"
SINCE = "_since_trained"
# The share of the corrections that must be right in other words.
LEARNED = 1 / 2
NUM_SAMPLES = 100


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
    known = exam.known(run / "evals" / "after") if version_in_use(run) else None
    if known and [c.item for c in known[1].choices] == [c.item for c in after.choices]:
        start = _compare(exam, known[1], after)
        compared |= {f"{name}{SINCE}": found for name, found in start.items()}
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
        name = "earlier test set"
        found[BY_TOKENS] = compare(f"{name} by tokens", before.tokens, after.tokens, **options)
        found[BY_ANSWERS] = compare(
            f"{name}, whole answers", before.scores, after.scores, **options
        )
    sides = ([choice.score for choice in sat.choices] for sat in (before, after))
    found["retention"] = compare("general ability", *sides, **options)
    if before.own and after.own:
        sides = ([choice.score for choice in sat.own] for sat in (before, after))
        found["own"] = compare(f"ability on {OWN_NAME}", *sides, **options)
    return found


def _allow(name: str, measure: Measure, margin: float) -> tuple[str, str]:
    """The verdict of one set, and why it forbids the version; an empty reason where it does not.

    Few questions prove nothing, either way: there a loss of more than one whole answer, and more
    than the margin, forbids.
    """
    about = measure.name + (" since the run was trained" if name.endswith(SINCE) else "")
    asked = name.removesuffix(SINCE)
    if measure.n < MIN_ITEMS or measure.clusters < MIN_CLUSTERS:
        lost = -measure.difference * measure.n
        if asked == BY_TOKENS or lost <= max(1.0, margin * measure.n):
            return "too_few", ""
        return "lost", f"{about}: {lost:.0f} of {measure.n} questions are answered worse"
    low, high = (100 * end for end in measure.ci95)
    change = f"{measure.before:.1%} to {measure.after:.1%}"
    if asked == BY_ANSWERS:
        if high >= 0:
            return measure.verdict, ""
        return "lost", f"{about} are fewer: {change} [{low:+.1f}, {high:+.1f} points]"
    if measure.verdict == "kept":
        return "kept", ""
    what = "was lost" if measure.verdict == "lost" else "may have been lost"
    return measure.verdict, (
        f"{about} {what}: {change}, at worst {low:+.1f} points where {-100 * margin:g} are allowed"
    )


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
