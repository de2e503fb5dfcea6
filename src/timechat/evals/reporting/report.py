"""The proof as files: `report.json` for scripts, `report.md` for a terminal, `report.html`.

It writes what it is given. The figures come from `compare`, the page's looks from `page`; a
report is written in a stage, which knows what was run.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from timechat.evals.figures import (
    VERDICT_WORDS,
    is_share,
    write_bounds,
    write_change,
    write_interval,
    write_level,
)
from timechat.evals.reporting.costs import list_costs
from timechat.evals.reporting.extras import (
    ARM_COLUMNS,
    SLIDER_COLUMNS,
    TEXT_COLUMNS,
    list_arms,
    list_people,
    list_slider,
    list_texts,
)
from timechat.evals.reporting.page import FOOTNOTES, build_page
from timechat.evals.reporting.sections import Curves
from timechat.evals.scoring.answers import likeness
from timechat.evals.statistics.compare import read_margin
from timechat.evals.statistics.power import MIN_CLUSTERS, MIN_ITEMS
from timechat.records import Measure, Report, Sample, Verdict
from timechat.store.files import to_json, write_json, write_text

CURVES = ("train", "validation", "accuracy", "general", "divergence")
MEASURE_COLUMNS = (
    *("measure", "before", "after", "difference", "95 % interval"),
    *("questions", "groups", "verdict", "note"),
)
SMALL = 0.05
"""Where the whole interval of an answer score is nearer to zero than this, there is no difference
worth speaking of: as far as an arm may lie below the tuned model and still be enough."""
_SURROGATES = re.compile("[\ud800-\udfff]")


def write_report(report: Report, folder: Path, curves: Curves) -> None:
    """Write the three files, the machine-readable one last, so that it vouches for the others.

    `curves` maps "train" and "validation" to (step, loss), "general" and "divergence" to
    (step, nats), "accuracy" to (step, share); each may be missing or empty.
    """
    if unknown := sorted(set(curves) - set(CURVES)):
        raise ValueError(f"unknown curve {unknown[0]!r}; known: {', '.join(CURVES)}")
    write_text(folder / "report.md", _mend(build_markdown(report)))
    write_text(folder / "report.html", _mend(build_page(report, curves)))
    write_json(folder / "report.json", _mend(to_json(report)))


def headline(
    task: Measure,
    likelihood: Measure | None,
    retention: Measure,
    verdict: Verdict,
    *,
    groups: str = "groups",
    closing: str = "",
) -> str:
    """The result in one sentence with its figures. `groups` is what a cluster is called, and
    `closing` what else must be known at once: that training was not needed, say."""
    clusters = f" ({task.clusters} {groups})" if task.clusters != task.n else ""
    low, high = write_bounds(task)
    parts = [
        f"On {task.n} held-out questions{clusters}, {task.name} {_tell_direction(task)} "
        f"({write_change(task)}, 95 % interval {low} to {high})"
    ]
    if likelihood is not None:
        unit = f" {likelihood.unit}" if likelihood.unit else ""
        parts.append(
            f"{likelihood.name} {write_change(likelihood)}{unit} {write_interval(likelihood)}"
        )
    margin = read_margin(retention)
    parts.append(
        f"{retention.name} {VERDICT_WORDS.get(retention.verdict, retention.verdict)}: "
        f"{write_level(retention.before, retention)} to {write_level(retention.after, retention)} "
        f"({write_change(retention)} {write_interval(retention)}{', ' + margin if margin else ''})"
    )
    parts += filter(None, (_tell_no_difference(task), closing))
    if verdict == "inconclusive":
        parts.append("all together inconclusive")
    elif verdict == "not_improved":
        parts.append("all together not an improvement")
    return "; ".join(parts)


def _tell_no_difference(task: Measure) -> str:
    """In plain words that no difference was found, and whether one is ruled out; empty where there
    is one, and below the number of questions from which anything can be told."""
    low, high = task.ci95
    if low > 0 or high < 0 or task.n < MIN_ITEMS or task.clusters < MIN_CLUSTERS:
        return ""
    if is_share(task.unit) and max(-low, high) < SMALL:
        return f"no difference, or one of less than {100 * SMALL:g} points"
    return "no difference is shown"


def build_markdown(report: Report) -> str:
    """The report as GitHub-flavoured Markdown, with everything from data escaped."""
    lines = [
        f"# {VERDICT_WORDS[report.verdict].capitalize()}",
        "",
        _escape(report.headline),
        "",
        *(f"- {_escape(finding)}" for finding in report.findings),
        *([""] if report.findings else []),
        "## Six checks",
        "",
        *_table(
            ("", "check", "figure"),
            (("✓" if c.passed else "✗", c.name, c.figure) for c in report.checks),
        ),
        "",
        "## Measures",
        "",
        *_table(
            MEASURE_COLUMNS,
            map(_measure_row, _all_measures(report)),
        ),
        "",
    ]
    if report.samples:
        lines += ["## Side by side", ""]
        for number, sample in enumerate(report.samples, start=1):
            lines += _sample_lines(number, sample)
    for title, samples in (("Gained most", report.best), ("Lost most", report.worst)):
        if samples:
            lines += [f"## {title}", "", "To check by hand.", ""]
            for number, sample in enumerate(samples, start=1):
                lines += _sample_lines(number, sample)
    if report.changed:
        rows = ((s.question, s.before, s.after, f"{likeness(s):.0%}") for s in report.changed)
        lines += [
            "## Questions whose answer changed most",
            "",
            "Least like the previous answer first, whatever the scores say. To check by hand.",
            "",
            *_table(("question", "before", "after", "alike"), rows),
            "",
        ]
    if people := report.details.get("people"):
        lines += ["## What people chose", "", *_table(("", ""), list_people(people)), ""]
    if arms := report.details.get("arms"):
        lines += [
            "## Without training, and beside it",
            "",
            *_table(ARM_COLUMNS, list_arms(arms)),
            "",
        ]
    if slider := report.details.get("slider"):
        table = _table(SLIDER_COLUMNS, list_slider(slider))
        lines += ["## How strongly to apply it", "", *table, ""]
    if answers := report.details.get("answers"):
        lines += ["## The answers as texts", "", *_table(TEXT_COLUMNS, list_texts(answers)), ""]
    if costs := list_costs(report.run):
        lines += ["## What it cost", "", *_table(("", ""), costs), ""]
    lines += ["## How to read this", "", *(f"- {_escape(note)}" for note in FOOTNOTES), ""]
    return "\n".join(lines)


def _tell_direction(measure: Measure) -> str:
    before, after = write_level(measure.before, measure), write_level(measure.after, measure)
    if measure.difference == 0:
        return f"stayed at {after}"
    return f"{'rose' if measure.difference > 0 else 'fell'} from {before} to {after}"


def _all_measures(report: Report) -> list[Measure]:
    """Task and retention first, then what else was measured, each once."""
    return list(dict.fromkeys((report.task, report.retention, *report.measures)))


def _measure_row(measure: Measure) -> tuple[str, ...]:
    return (
        measure.name if is_share(measure.unit) else f"{measure.name} ({measure.unit})",
        write_level(measure.before, measure),
        write_level(measure.after, measure),
        write_change(measure),
        write_interval(measure),
        str(measure.n),
        str(measure.clusters),
        VERDICT_WORDS.get(measure.verdict, measure.verdict),
        measure.note,
    )


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    out = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    out += ["| " + " | ".join(map(_escape, row)) + " |" for row in rows]
    return out


def _sample_lines(number: int, sample: Sample) -> list[str]:
    lines = [f"### {number}", ""]
    answers = (("Before", sample.before, sample.score_before),)
    answers += (("After", sample.after, sample.score_after),)
    lines += ["Question", "", *_fence(sample.question), ""]
    for name, text, score in answers:
        lines += [name if score is None else f"{name} (score {score:.2f})", "", *_fence(text), ""]
    return [*lines, "Reference", "", *_fence(sample.reference), ""]


def _fence(text: str) -> list[str]:
    """A code block whose fence is longer than any in the text, so the text cannot end it."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"{fence}text", text, fence]


def _escape(text: str) -> str:
    """One line of text in which Markdown finds no tag, table cell, link or emphasis."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*_|])", r"\\\1", text)
    return text.replace("](", "]\\(")


def _mend(value: Any) -> Any:
    """`value` as strict JSON and UTF-8 can hold it: no infinities (null), no lone surrogates."""
    if isinstance(value, dict):
        return {_mend(key): _mend(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_mend(inner) for inner in value]
    if isinstance(value, str):
        return _SURROGATES.sub("\ufffd", value)
    return None if isinstance(value, float) and not math.isfinite(value) else value
