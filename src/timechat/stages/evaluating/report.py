"""Two snapshots become a report: every measure compared, judged and written down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from timechat.conversation import Conversation
from timechat.evals.questions.run import Likelihood
from timechat.evals.questions.suite import OWN, Decoding, Task
from timechat.evals.reporting.report import headline, write_report
from timechat.evals.scoring.answers import (
    describe,
    differ_most,
    find_leaks,
    find_losses,
    find_regressions,
    gained_and_lost,
    text_measures,
)
from timechat.evals.statistics.compare import (
    change_groups,
    compare,
    correct,
    overall_verdict,
)
from timechat.evals.statistics.overfit import Look, name_overfit
from timechat.evals.statistics.power import foresee
from timechat.records import Check, Measure, Report, Sample, Score
from timechat.stages.evaluating.budget import tell_share
from timechat.stages.evaluating.checks import check_retention
from timechat.stages.evaluating.snapshot import Snapshot
from timechat.stages.watch import Watcher
from timechat.store.files import read_lines

NUM_SAMPLES = 24
NATS = "nats per token"
OWN_NAME = "your own retention questions"


def say_power(task: Task, watcher: Watcher) -> None:
    """Before the run: the smallest change that this many questions can show."""
    watcher.say(foresee([q.cluster for q in task.questions]).write())


@dataclass(frozen=True, slots=True)
class Extra:
    """What a report may hold beside the two snapshots, all of it optional.

    `trained` are the training rows, against which answers are searched for copies and questions
    for leaks; `decoding` is how the answers were taken; `wanted_format` is what
    `scoring.texts.format_check` reads; `closing` belongs in the headline; `num_general` is how many
    general questions there are, where they may not all have been asked.
    """

    findings: tuple[str, ...] = ()
    details: dict[str, Any] = field(default_factory=dict[str, Any])
    trained: tuple[Conversation, ...] = ()
    wanted_format: str = ""
    num_general: int = 0
    decoding: Decoding | None = None
    measures: tuple[Measure, ...] = ()
    closing: str = ""


def build_report(
    out: Path,
    task: Task,
    before: Snapshot,
    after: Snapshot,
    margin: float,
    checks: Sequence[Check],
    run: dict[str, Any],
    extra: Extra | None = None,
) -> Report:
    """Compare, judge, and write `report.json`, `report.md` and `report.html` into `out`."""
    extra = extra or Extra()
    measures = measure_all(task, before, after, margin)
    # An endpoint gives no likelihoods: the answer score decides by itself.
    decisive = measures[: 2 if before.task and after.task else 1]
    measures[: len(decisive)] = correct(decisive)
    decisive, retention = measures[: len(decisive)], measures[len(decisive)]
    verdict = overall_verdict(decisive)
    texts = text_measures(
        task.questions,
        before.answers,
        after.answers,
        [row.reference for row in extra.trained],
        extra.wanted_format,
    )
    groups = change_groups(before.scores, after.scores)
    asked_less = tell_share(retention.n, extra.num_general)
    own = next((m for m in measures if m.name == OWN_NAME), None)
    findings = (
        *([asked_less] if asked_less else []),
        *find_leaks(task.questions, extra.trained),
        *extra.findings,
        *find_overfit(out),
        *find_losses(texts),
        *find_regressions(groups),
    )
    every = _every_sample(task, before, after)
    best, worst = gained_and_lost(every)
    likelihood = decisive[1] if len(decisive) > 1 else None
    report = Report(
        verdict=verdict,
        headline=headline(decisive[0], likelihood, retention, verdict, closing=extra.closing),
        checks=(*checks, check_retention(retention, margin, extra.num_general, own)),
        task=decisive[0],
        retention=retention,
        measures=(*measures, *extra.measures, *texts),
        samples=_spread(every),
        groups=groups,
        run=run,
        findings=findings,
        details={
            "answers": _describe(task, before, after),
            "questions_sha256": task.digest,
            **({"decoding": extra.decoding.to_dict()} if extra.decoding else {}),
            **extra.details,
        },
        best=tuple(best),
        worst=tuple(worst),
        changed=tuple(differ_most(every)),
    )
    write_report(report, out, curves(out))
    return report


def _describe(task: Task, before: Snapshot, after: Snapshot) -> dict[str, Any]:
    found = describe(task.questions, before.answers, after.answers)
    for name, shot in (("before", before), ("after", after)):
        if shot.first_token_ms is not None:
            found[name]["first_token_ms"] = shot.first_token_ms
    return found


def measure_all(task: Task, before: Snapshot, after: Snapshot, margin: float) -> list[Measure]:
    """Every measure: the answer score, its likelihood and retention first."""
    clusters = {q.id: q.cluster for q in task.questions}
    score = compare("answer score", before.scores, after.scores, kind="gain", unit="share")
    if not before.task or not after.task:
        return [score, _not_measured(margin)]
    measures = [
        score,
        _drift("likelihood of the reference answers", before.task, after.task, clusters),
        compare(
            "general ability",
            [c.score for c in before.choices if c.tag != OWN],
            [c.score for c in after.choices if c.tag != OWN],
            kind="retention",
            margin=margin,
            unit="share",
        ),
        _drift("likelihood of plain prose", before.prose, after.prose, {}),
        _drift("likelihood of general answers", before.general, after.general, {}),
    ]
    for tag in sorted({c.tag for c in before.choices}):
        chosen = [[c.score for c in side.choices if c.tag == tag] for side in (before, after)]
        measures.append(
            compare(
                OWN_NAME if tag == OWN else f"general: {tag}",
                *chosen,
                kind="retention",
                margin=margin,
                unit="share",
            )
        )
    return measures


def curves(out: Path) -> dict[str, list[tuple[int, float]]]:
    """Training loss, validation loss and accuracy by step, out of `metrics.jsonl`."""
    if not (out / "metrics.jsonl").is_file():
        return {}
    rows = list(read_lines(out / "metrics.jsonl"))
    names = {
        "train": "loss",
        "validation": "validation_loss",
        "accuracy": "validation_accuracy",
        "general": "general_nats",
        "divergence": "divergence",
    }
    return {
        curve: [(row["step"], row[key]) for row in rows if key in row]
        for curve, key in names.items()
    }


def find_overfit(out: Path) -> list[str]:
    """A sentence where the validations of the run in `out` show overfitting."""
    if not (out / "metrics.jsonl").is_file():
        return []
    looks: list[Look] = []
    train: float | None = None
    for row in read_lines(out / "metrics.jsonl"):
        train = row.get("loss", train)
        error = row.get("validation_loss_error")
        if error is not None:
            loss, right = row["validation_loss"], row["validation_accuracy"]
            spread = row["validation_accuracy_error"]
            looks.append(Look(row["step"], loss, error, right, spread, train))
    found = name_overfit(looks)
    return [found.text] if found is not None and found.found != "none" else []


def _drift(
    name: str, before: list[Likelihood], after: list[Likelihood], clusters: dict[str, str]
) -> Measure:
    """Log-likelihood per token: less negative is better."""

    def scores(rows: list[Likelihood]) -> list[Score]:
        return [
            Score(r.item, clusters.get(r.item, r.item), -r.nats_per_token, "log_likelihood-1")
            for r in rows
        ]

    return compare(name, scores(before), scores(after), kind="gain", unit=NATS)


def _not_measured(margin: float) -> Measure:
    """Retention where an endpoint gives answers only."""
    note = f"margin {100 * margin:g} points; not measured: an endpoint gives no likelihoods"
    reach = (float("-inf"), float("inf"))
    return Measure("general ability", 0.0, 0.0, 0.0, reach, 0, 0, "undecided", "share", None, note)


def _every_sample(task: Task, before: Snapshot, after: Snapshot) -> list[Sample]:
    return [
        Sample(
            question=question.question[-1].content,
            before=before.answers[i],
            after=after.answers[i],
            reference=question.reference,
            group=question.group,
            score_before=before.scores[i].value,
            score_after=after.scores[i].value,
        )
        for i, question in enumerate(task.questions)
    ]


def _spread(samples: Sequence[Sample]) -> tuple[Sample, ...]:
    """Samples spread over the file, none chosen for its result."""
    return tuple(samples[:: max(1, len(samples) // NUM_SAMPLES)][:NUM_SAMPLES])
