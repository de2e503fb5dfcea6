"""`compare`: two snapshots to a report; a run's before and after again, or any two models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from timechat.evals.compare import (
    change_groups,
    compare,
    correct,
    overall_verdict,
)
from timechat.evals.power import foresee
from timechat.evals.report import headline, write_report
from timechat.evals.run import Choosing, Likelihood
from timechat.evals.suite import Task
from timechat.records import Check, Measure, Report, Sample, Score
from timechat.stages.checks import check_retention
from timechat.stages.snapshot import Snapshot
from timechat.stages.watch import Watcher
from timechat.store import read_lines

NUM_SAMPLES = 24
NATS = "nats per token"


def say_power(task: Task, watcher: Watcher) -> None:
    """Before the run: the smallest change that this many questions can show."""
    watcher.say(foresee([q.cluster for q in task.questions]).write())


def build_report(
    out: Path,
    task: Task,
    before: Snapshot,
    after: Snapshot,
    margin: float,
    checks: Sequence[Check],
    run: dict[str, Any],
) -> Report:
    """Compare, judge, and write `report.json`, `report.md` and `report.html` into `out`."""
    measures = measure_all(task, before, after, margin)
    score, likelihood = measures[:2] = correct(measures[:2])
    retention = measures[2]
    verdict = overall_verdict([score, likelihood])
    report = Report(
        verdict=verdict,
        headline=headline(score, likelihood, retention, verdict),
        checks=(*checks, check_retention(retention, margin)),
        task=score,
        retention=retention,
        measures=tuple(measures),
        samples=_samples(task, before, after),
        groups=change_groups(before.scores, after.scores),
        run=run,
    )
    write_report(report, out, curves(out))
    return report


def measure_all(task: Task, before: Snapshot, after: Snapshot, margin: float) -> list[Measure]:
    """Every measure: the answer score, its likelihood and retention first."""
    clusters = {q.id: q.cluster for q in task.questions}
    measures = [
        compare("answer score", before.scores, after.scores, kind="gain", unit="share"),
        _drift("likelihood of the reference answers", before.task, after.task, clusters),
        compare(
            "general ability",
            _choice_scores(before.choices),
            _choice_scores(after.choices),
            kind="retention",
            margin=margin,
            unit="share",
        ),
        _drift("likelihood of plain prose", before.prose, after.prose, {}),
        _drift("likelihood of general answers", before.general, after.general, {}),
    ]
    for tag in sorted({c.tag for c in before.choices}):
        chosen = [[c for c in side if c.tag == tag] for side in (before.choices, after.choices)]
        measures.append(
            compare(
                f"general: {tag}",
                _choice_scores(chosen[0]),
                _choice_scores(chosen[1]),
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
    names = {"train": "loss", "validation": "validation_loss", "accuracy": "validation_accuracy"}
    return {
        curve: [(row["step"], row[key]) for row in rows if key in row]
        for curve, key in names.items()
    }


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


def _choice_scores(rows: Sequence[Choosing]) -> list[Score]:
    return [Score(r.item, r.cluster, float(r.right), "likeliest-1") for r in rows]


def _samples(task: Task, before: Snapshot, after: Snapshot) -> tuple[Sample, ...]:
    """Questions spread over the file, none chosen for its result."""
    step = max(1, len(task.questions) // NUM_SAMPLES)
    return tuple(
        Sample(
            question=task.questions[i].question[-1].content,
            before=before.answers[i],
            after=after.answers[i],
            reference=task.questions[i].reference,
            group=task.questions[i].group,
            score_before=before.scores[i].value,
            score_after=after.scores[i].value,
        )
        for i in list(range(0, len(task.questions), step))[:NUM_SAMPLES]
    )
