"""The sections of the report's page: head, checks, measures, curves, groups, samples, costs.

Every string that came from data or from a model is escaped, because what a model writes is hostile
until shown otherwise. The frame around them is `page`'s, drawings are `plots`', wording is
`figures`'.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from typing import Any

from timechat.evals.figures import (
    VERDICT_WORDS,
    choose_places,
    is_share,
    write_amount,
    write_change,
    write_interval,
    write_level,
)
from timechat.evals.reporting.costs import list_costs
from timechat.evals.reporting.extras import mark_changes
from timechat.evals.reporting.plots import Line, draw_bar, draw_chart, draw_interval, smooth
from timechat.records import Measure, Report, Sample

Curves = Mapping[str, Sequence[Sequence[float]]]

MAX_GROUPS = 8
OPEN_MEASURES, OPEN_SAMPLES = 5, 12
_GOOD = {"improved", "kept"}
_BAD = {"not_improved", "lost"}


def draw_top(report: Report) -> str:
    cards = "".join(
        f'<div class="card"><p class="what">{escape(measure.name)}</p>'
        f'<p class="big"><span class="old">{_figure(write_level(measure.before, measure))}</span>'
        f'<span class="arrow" aria-label="to">→</span>'
        f"<span>{_figure(write_level(measure.after, measure))}</span></p>"
        f'<p class="detail">{_figure(write_change(measure))}{_unit(measure)}, 95 % interval '
        f"{_figure(write_interval(measure))} {_chip(measure.verdict)}</p></div>"
        for measure in (report.task, report.retention)
    )
    return (
        f'<header><p class="kicker">TimeChat report</p><h1 class="{_tone(report.verdict)}">'
        f"{escape(VERDICT_WORDS[report.verdict].capitalize())}</h1>"
        f'<p class="headline">{_figure(report.headline)}.</p>'
        + _draw_findings(report.findings)
        + f'<div class="cards">{cards}</div></header>'
    )


def _draw_findings(findings: Sequence[str]) -> str:
    items = "".join(f"<li>{_commands(_figure(finding))}</li>" for finding in findings)
    return f'<ul class="findings">{items}</ul>' if items else ""


def _commands(written: str) -> str:
    """What stands between backticks, as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", written)


def draw_checks(report: Report) -> str:
    items = "".join(
        f'<li class="{"good" if check.passed else "bad"}">'
        f'<span class="sign" aria-label="{"passed" if check.passed else "failed"}">'
        f"{'✓' if check.passed else '✗'}</span><div><b>{escape(check.name)}</b>"
        f'<span class="detail">{escape(check.figure)}</span></div></li>'
        for check in report.checks
    )
    return f'<ul class="checks">{items}</ul>' if items else ""


def draw_measures(report: Report) -> str:
    measures = list(dict.fromkeys((report.task, report.retention, *report.measures)))
    # Shares can be drawn on one axis; another unit has its own.
    extents: dict[str, float] = {}
    for measure in measures:
        reach = max((abs(end) for end in measure.ci95 if abs(end) < float("inf")), default=0.0)
        extents[_axis(measure)] = max(extents.get(_axis(measure), 0.0), reach)
    # The first say what matters; of the others, only bad news is not folded away.
    shown = [m for i, m in enumerate(measures) if i < OPEN_MEASURES or m.verdict in _BAD]
    rest = [m for m in measures if m not in shown]
    table = _draw_table(shown, extents)
    if not rest:
        return table
    return (
        f"{table}<details><summary>{len(rest)} more measures: by kind of question, by other scorers"
        f"</summary>{_draw_table(rest, extents)}</details>"
    )


def _draw_table(measures: Sequence[Measure], extents: Mapping[str, float]) -> str:
    rows = "".join(_draw_measure(measure, 1.05 * extents[_axis(measure)]) for measure in measures)
    heads = "".join(
        f"<th{' class=number' if name in _NUMBERS else ''}>{name}</th>" for name in _COLUMNS
    )
    return f'<table class="measures"><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>'


_COLUMNS = (
    *("Measure", "Before", "After", "Difference", "95 % interval", "Questions", "Groups"),
    "Verdict",
)
_NUMBERS = {"Before", "After", "Difference", "Questions", "Groups"}


def _draw_measure(measure: Measure, extent: float) -> str:
    cells = {
        "Before": _figure(write_level(measure.before, measure)),
        "After": _figure(write_level(measure.after, measure)),
        "Difference": _figure(write_change(measure)),
        "95 % interval": draw_interval(
            measure.ci95, measure.difference, extent, _tone(measure.verdict)
        )
        + f'<span class="detail">{_figure(write_interval(measure))}</span>',
        "Questions": f"{measure.n:,}",
        "Groups": f"{measure.clusters:,}",
        "Verdict": _chip(measure.verdict),
    }
    tds = "".join(
        f'<td data-label="{name}"{" class=number" if name in _NUMBERS else ""}>{cell}</td>'
        for name, cell in cells.items()
    )
    # Percent and points say themselves that it is a share.
    named = "" if is_share(measure.unit) else measure.unit
    unit = f'<span class="detail">{escape(named)}</span>' if named else ""
    note = f'<tr class="note"><td colspan="8">{escape(measure.note)}</td></tr>'
    return f'<tr><th scope="row">{escape(measure.name)}{unit}</th>{tds}</tr>' + (
        note if measure.note else ""
    )


def draw_curves(curves: Curves) -> str:
    series = {name: [(float(p[0]), float(p[1])) for p in curves[name]] for name in curves}
    train = series.get("train", [])
    losses = [
        Line("", train, "faint"),
        Line("training loss", smooth(train), "first"),
        Line("validation loss", series.get("validation", []), "second", dots=True),
    ]
    accuracy = [
        Line("validation accuracy", series.get("accuracy", []), "third", dots=True),
    ]
    drift = [
        Line("divergence from the base", series.get("divergence", []), "second", dots=True),
        Line("loss on general answers", series.get("general", []), "third", dots=True),
    ]
    charts = (
        (draw_chart(losses, label="Loss by step"), "Nats per answer token; lower is better."),
        (
            draw_chart(accuracy, label="Validation accuracy by step", percent=True),
            "Share of validation answers' tokens that were right.",
        ),
        (
            draw_chart(drift, label="Divergence from the base by step"),
            "Nats a token: distance from the base on the run's rows; cost of general answers.",
        ),
    )
    drawn = "".join(
        f"<figure>{svg}<figcaption>{caption}</figcaption></figure>"
        for svg, caption in charts
        if svg
    )
    return f'<div class="charts">{drawn}</div>' if drawn else ""


def draw_groups(report: Report) -> str:
    changes = {
        name: group.get("difference", group.get("after", 0.0) - group.get("before", 0.0))
        for name, group in report.groups.items()
    }
    order = sorted(changes, key=lambda name: (-changes[name], name))
    if not order:
        return ""
    shown, left_out = order, 0
    if len(order) > 2 * MAX_GROUPS:
        shown = order[:MAX_GROUPS] + order[-MAX_GROUPS:]
        left_out = len(order) - len(shown)
    extent = max(map(abs, changes.values()))
    places = 0 if is_share(report.task.unit) else choose_places(report.task)
    rows = [
        f'<li><span class="name" dir="auto">{escape(name)}</span>{draw_bar(changes[name], extent)}'
        f'<span class="number">{_figure(write_amount(changes[name], report.task.unit, places))}'
        "</span></li>"
        for name in shown
    ]
    if left_out:
        rows.insert(MAX_GROUPS, f'<li class="gap">{left_out} groups between these</li>')
    return (
        f'<p class="detail">{escape(report.task.name)}, after minus before; most gain first.</p>'
        f'<ul class="groups">{"".join(rows)}</ul>'
    )


def draw_samples(samples: Sequence[Sample]) -> str:
    cards = [_draw_sample(sample) for sample in samples]
    shown, rest = cards[:OPEN_SAMPLES], cards[OPEN_SAMPLES:]
    more = f"<details><summary>{len(rest)} more</summary>{''.join(rest)}</details>" if rest else ""
    return "".join(shown) + more


def _draw_sample(sample: Sample) -> str:
    mark = ""
    if sample.score_before is not None and sample.score_after is not None:
        change = sample.score_after - sample.score_before
        word, tone = ("better", "good") if change > 0 else ("worse", "bad")
        if change == 0:
            word, tone = "same score", "open"
        scores = f"{100 * sample.score_before:.0f} → {100 * sample.score_after:.0f} %"
        mark = f'<span class="chip {tone}">{word}, {scores}</span>'
    group = f'<span class="detail">{escape(sample.group)}</span>' if sample.group else ""
    marked = zip(("Before", "After"), mark_changes(sample.before, sample.after), strict=True)
    answers = "".join(
        f'<div><p class="what">{name}</p><p class="said" dir="auto">'
        f"{text or '<i>(nothing)</i>'}</p></div>"
        for name, text in marked
    )
    return (
        f'<article class="card sample"><div class="asked"><p class="said" dir="auto">'
        f"{escape(sample.question)}</p>{mark}{group}</div>"
        f'<div class="answers">{answers}</div><p class="what">Reference</p>'
        f'<p class="said" dir="auto">{escape(sample.reference)}</p></article>'
    )


def draw_costs(run: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
        for name, value in list_costs(run)
    )
    return f'<dl class="costs">{rows}</dl>' if rows else ""


def _axis(measure: Measure) -> str:
    return "" if is_share(measure.unit) else measure.unit


def _unit(measure: Measure) -> str:
    return "" if is_share(measure.unit) else f" {escape(measure.unit)}"


def _chip(verdict: str) -> str:
    word = VERDICT_WORDS.get(verdict, verdict)
    return f'<span class="chip {_tone(verdict)}">{escape(word)}</span>'


def _tone(verdict: str) -> str:
    return "good" if verdict in _GOOD else "bad" if verdict in _BAD else "open"


def _figure(written: str) -> str:
    """Text with true minus signs before its numbers."""
    return escape(re.sub(r"(?<![\w-])-(?=[\d∞])", "−", written))


def escape(value: str) -> str:
    """Text as HTML that shows it and does nothing else."""
    return html.escape(value, quote=True)
