"""Two reports set beside each other: what each one's new model answered, and nothing asked again.

Only answers to the same questions under the same decoding can be compared; anything else is
refused with what differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from timechat.conversation import Conversation
from timechat.errors import DataError, RecipeError
from timechat.evals.questions.suite import Task
from timechat.recipe import Evaluate
from timechat.records import Report
from timechat.stages.evaluating import snapshot
from timechat.stages.evaluating.report import Extra, build_report
from timechat.stages.evaluating.snapshot import Snapshot
from timechat.stages.watch import Watcher
from timechat.store.files import read_json

REPORT = "report.json"


@dataclass(frozen=True, slots=True)
class Recorded:
    """One report's questions, and its new model's answers to them."""

    folder: Path
    about: dict[str, Any]
    questions: list[Conversation]
    shot: Snapshot


def is_report(name: str) -> bool:
    """Whether `name` is a folder that `compare --out` left: a report, and no model."""
    folder = Path(name)
    return (folder / REPORT).is_file() and not (folder / "recipe.yaml").is_file()


def compare_reports(first: Path, second: Path, out: Path, watcher: Watcher) -> Report:
    """The first report's new model as before, the second's as after."""
    refuse_other_questions(first, second)
    sides = [_read(folder) for folder in (first, second)]
    watcher.say(f"comparing what {first} and {second} recorded; nothing is asked again")
    common = {q.id for q in sides[0].questions} & {q.id for q in sides[1].questions}
    sides = [_keep(side, common) for side in sides]
    shots, findings = _align([side.shot for side in sides])
    asked = max(len(side.questions) for side in sides)
    if len(common) < asked:
        findings.append(f"{asked - len(common)} questions were answered in one report only")
    about = {"questions_sha256": sides[0].about["questions_sha256"]}
    if "decoding" in sides[0].about:
        about["decoding"] = sides[0].about["decoding"]
    margin = Evaluate().retention_margin
    names = {"before": str(first), "after": str(second)}
    task = Task(tuple(sides[0].questions), ((),) * len(common), ())
    extra = Extra(tuple(findings), about)
    before, after = shots
    return build_report(out, task, before, after, margin, [], names, extra)


def refuse_other_questions(first: Path, second: Path) -> None:
    """Raises RecipeError where two reports are not of the same questions and decoding."""
    one, two = (_about(folder) for folder in (first, second))
    if one["questions_sha256"] != two["questions_sha256"]:
        raise RecipeError(
            f"{first} and {second} asked different questions (SHA-256 "
            f"{one['questions_sha256'][:12]} and {two['questions_sha256'][:12]}): their figures "
            "cannot be compared; name one file for both with --questions"
        )
    old, new = one.get("decoding", {}), two.get("decoding", {})
    if old.get("sha256") != new.get("sha256"):
        differ = sorted(k for k in {*old, *new} - {"sha256"} if old.get(k) != new.get(k))
        told = ", ".join(f"{k} {_short(old.get(k))} and {_short(new.get(k))}" for k in differ)
        raise RecipeError(
            f"{first} and {second} took their answers differently ({told}): their figures cannot "
            "be compared; ask both again with --questions"
        )


def _short(value: object) -> str:
    return "unknown" if value is None else str(value)[:12]


def _about(folder: Path) -> dict[str, Any]:
    try:
        details: dict[str, Any] = read_json(folder / REPORT)["details"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder / REPORT} is no report ({error}): make it again") from None
    if not isinstance(details.get("questions_sha256"), str):
        raise DataError(f"{folder / REPORT} does not say what was asked: make it again")
    return details


def _read(folder: Path) -> Recorded:
    found = snapshot.read_answers(folder / "evals" / "after")
    if found is None:
        raise DataError(
            f"{folder} holds a report but not the answers behind it (evals/after): make it again"
        )
    return Recorded(folder, _about(folder), *found)


def _keep(side: Recorded, ids: set[str]) -> Recorded:
    places = [i for i, q in enumerate(side.questions) if q.id in ids]
    places.sort(key=lambda i: side.questions[i].id)
    return replace(side, questions=[side.questions[i] for i in places], shot=side.shot.at(places))


def _align(shots: Sequence[Snapshot]) -> tuple[list[Snapshot], list[str]]:
    """The general questions that both were asked; where one was not, likelihoods of neither."""
    if not all(shot.task for shot in shots):
        return [replace(s, task=[], choices=[], prose=[], general=[]) for s in shots], []
    common = {c.item for c in shots[0].choices} & {c.item for c in shots[1].choices}
    most = max(len(shot.choices) for shot in shots)
    found = [replace(shot, choices=[c for c in shot.choices if c.item in common]) for shot in shots]
    told = f"{len(common):,} general questions were asked in both reports, {most:,} in one of them"
    return found, [told] if len(common) < most else []
