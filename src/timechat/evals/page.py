"""The report as one HTML file that can be read offline, on a phone, in light and dark.

No script and nothing fetched: a content security policy forbids both, and every string that came
from data or from a model is escaped, because what a model writes is hostile until shown
otherwise. The drawings are `plots`' work, the wording of figures `figures`'.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from typing import Any

from timechat.evals.extras import (
    draw_arms,
    draw_judge,
    draw_labels,
    draw_people,
    draw_slider,
    draw_texts,
    mark_changes,
)
from timechat.evals.figures import (
    VERDICT_WORDS,
    choose_places,
    is_share,
    write_amount,
    write_bytes,
    write_change,
    write_duration,
    write_interval,
    write_level,
)
from timechat.evals.plots import Line, draw_bar, draw_chart, draw_interval, smooth
from timechat.evals.style import STYLE
from timechat.records import Measure, Report, Sample

Curves = Mapping[str, Sequence[Sequence[float]]]

MAX_GROUPS = 8
OPEN_SAMPLES = 12
COSTS = {
    "base": "Base model",
    "method": "Method",
    "trained_parameters": "Trained weights",
    "strength": "Adapter strength",
    "best": "Checkpoint",
    "steps": "Steps",
    "epochs": "Epochs",
    "batch_rows": "Rows a step",
    "learning_rate": "Learning rate",
    "train_seconds": "Training time",
    "predicted_train_seconds": "As predicted",
    "tokens": "Tokens trained",
    "tokens_per_second": "Tokens a second",
    "peak_bytes": "Peak memory",
    "questions_sha256": "Questions (SHA-256)",
}
FOOTNOTES = (
    "Both models answered the same questions, and each question is compared with itself. The "
    "interval covers the mean difference with 95 % confidence: Student's t on the means of groups, "
    "where questions of one group (one fact, one document) count as one.",
    "A gain is claimed only when the whole interval lies above zero and a permutation test agrees "
    "(Holm's correction over the measures that decide); an ability counts as kept "
    "only when the whole interval lies above minus the margin. Only the measures behind the "
    "verdict were chosen beforehand; read the others, the groups and the samples as hints.",
    "Not measured: questions unlike these, safety beyond the refusals among the general "
    "questions, what people would prefer, and the luck of training. This is one training run; "
    "the interval is about the questions, not about other random seeds.",
)
_GOOD = {"improved", "kept"}
_BAD = {"not_improved", "lost"}
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def build_page(report: Report, curves: Curves) -> str:
    """The whole page. `curves` is that of `report.write_report`."""
    title = f"TimeChat report: {VERDICT_WORDS[report.verdict]}"
    sections = (
        _build_top(report),
        _section("Six checks", _build_checks(report)),
        _section("Measures", _build_measures(report)),
        _section("Loss and accuracy", _build_curves(curves)),
        _section("Change per group", _build_groups(report)),
        _section("Without training, and beside it", draw_arms(report.details)),
        _section("How strongly to apply it", draw_slider(report.details)),
        _section("The answers as texts", draw_texts(report.details)),
        _section("Labels", draw_labels(report.details)),
        _section("What people chose", draw_people(report.details)),
        _section("A judge's view", draw_judge(report.details)),
        _section("Gained most", _build_samples(report.best)),
        _section("Lost most", _build_samples(report.worst)),
        _section("Side by side, not chosen by result", _build_samples(report.samples)),
        _section("What it cost", _build_costs(report.run)),
        _section("How to read this", "".join(f"<p>{_text(note)}</p>" for note in FOOTNOTES)),
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{_text(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(filter(None, sections))
        + "\n</main>\n</body>\n</html>\n"
    )


def list_costs(run: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What `Report.run` tells in single values, worded: the known ones first, then the rest.

    Nested values are left to `report.json`.
    """
    names = [name for name in COSTS if name in run] + [name for name in run if name not in COSTS]
    return [
        (COSTS.get(name, name.replace("_", " ")), _write_cost(name, run[name]))
        for name in names
        if isinstance(run[name], str | int | float)
    ]


def _write_cost(name: str, value: str | float) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    if name.endswith(("seconds", "_s")):
        return write_duration(value)
    if name.endswith("_bytes"):
        return write_bytes(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def _build_top(report: Report) -> str:
    cards = "".join(
        f'<div class="card"><p class="what">{_text(measure.name)}</p>'
        f'<p class="big"><span class="old">{_figure(write_level(measure.before, measure))}</span>'
        f'<span class="arrow" aria-label="to">→</span>'
        f"<span>{_figure(write_level(measure.after, measure))}</span></p>"
        f'<p class="detail">{_figure(write_change(measure))}{_unit(measure)}, 95 % interval '
        f"{_figure(write_interval(measure))} {_chip(measure.verdict)}</p></div>"
        for measure in (report.task, report.retention)
    )
    return (
        f'<header><p class="kicker">TimeChat report</p><h1 class="{_tone(report.verdict)}">'
        f"{_text(VERDICT_WORDS[report.verdict].capitalize())}</h1>"
        f'<p class="headline">{_figure(report.headline)}.</p>'
        + _build_findings(report.findings)
        + f'<div class="cards">{cards}</div></header>'
    )


def _build_findings(findings: Sequence[str]) -> str:
    items = "".join(f"<li>{_figure(finding)}</li>" for finding in findings)
    return f'<ul class="findings">{items}</ul>' if items else ""


def _build_checks(report: Report) -> str:
    items = "".join(
        f'<li class="{"good" if check.passed else "bad"}">'
        f'<span class="sign" aria-label="{"passed" if check.passed else "failed"}">'
        f"{'✓' if check.passed else '✗'}</span><div><b>{_text(check.name)}</b>"
        f'<span class="detail">{_text(check.figure)}</span></div></li>'
        for check in report.checks
    )
    return f'<ul class="checks">{items}</ul>' if items else ""


def _build_measures(report: Report) -> str:
    measures = list(dict.fromkeys((report.task, report.retention, *report.measures)))
    # Shares can be drawn on one axis; another unit has its own.
    extents: dict[str, float] = {}
    for measure in measures:
        reach = max((abs(end) for end in measure.ci95 if abs(end) < float("inf")), default=0.0)
        extents[_axis(measure)] = max(extents.get(_axis(measure), 0.0), reach)
    rows = "".join(_build_measure(measure, 1.05 * extents[_axis(measure)]) for measure in measures)
    heads = "".join(
        f"<th{' class=number' if name in _NUMBERS else ''}>{name}</th>" for name in _COLUMNS
    )
    return f'<table class="measures"><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>'


_COLUMNS = (
    *("Measure", "Before", "After", "Difference", "95 % interval", "Questions", "Groups"),
    "Verdict",
)
_NUMBERS = {"Before", "After", "Difference", "Questions", "Groups"}


def _build_measure(measure: Measure, extent: float) -> str:
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
    unit = f'<span class="detail">{_text(named)}</span>' if named else ""
    note = f'<tr class="note"><td colspan="8">{_text(measure.note)}</td></tr>'
    return f'<tr><th scope="row">{_text(measure.name)}{unit}</th>{tds}</tr>' + (
        note if measure.note else ""
    )


def _build_curves(curves: Curves) -> str:
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


def _build_groups(report: Report) -> str:
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
        f'<li><span class="name" dir="auto">{_text(name)}</span>{draw_bar(changes[name], extent)}'
        f'<span class="number">{_figure(write_amount(changes[name], report.task.unit, places))}'
        "</span></li>"
        for name in shown
    ]
    if left_out:
        rows.insert(MAX_GROUPS, f'<li class="gap">{left_out} groups between these</li>')
    return (
        f'<p class="detail">{_text(report.task.name)}, after minus before; most gain first.</p>'
        f'<ul class="groups">{"".join(rows)}</ul>'
    )


def _build_samples(samples: Sequence[Sample]) -> str:
    cards = [_build_sample(sample) for sample in samples]
    shown, rest = cards[:OPEN_SAMPLES], cards[OPEN_SAMPLES:]
    more = f"<details><summary>{len(rest)} more</summary>{''.join(rest)}</details>" if rest else ""
    return "".join(shown) + more


def _build_sample(sample: Sample) -> str:
    mark = ""
    if sample.score_before is not None and sample.score_after is not None:
        change = sample.score_after - sample.score_before
        word, tone = ("better", "good") if change > 0 else ("worse", "bad")
        if change == 0:
            word, tone = "same score", "open"
        scores = f"{100 * sample.score_before:.0f} → {100 * sample.score_after:.0f} %"
        mark = f'<span class="chip {tone}">{word}, {scores}</span>'
    group = f'<span class="detail">{_text(sample.group)}</span>' if sample.group else ""
    marked = zip(("Before", "After"), mark_changes(sample.before, sample.after), strict=True)
    answers = "".join(
        f'<div><p class="what">{name}</p><p class="said" dir="auto">'
        f"{text or '<i>(nothing)</i>'}</p></div>"
        for name, text in marked
    )
    return (
        f'<article class="card sample"><div class="asked"><p class="said" dir="auto">'
        f"{_text(sample.question)}</p>{mark}{group}</div>"
        f'<div class="answers">{answers}</div><p class="what">Reference</p>'
        f'<p class="said" dir="auto">{_text(sample.reference)}</p></article>'
    )


def _build_costs(run: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<div><dt>{_text(name)}</dt><dd>{_text(value)}</dd></div>"
        for name, value in list_costs(run)
    )
    return f'<dl class="costs">{rows}</dl>' if rows else ""


def _section(title: str, body: str) -> str:
    return f"<section><h2>{title}</h2>{body}</section>" if body else ""


def _axis(measure: Measure) -> str:
    return "" if is_share(measure.unit) else measure.unit


def _unit(measure: Measure) -> str:
    return "" if is_share(measure.unit) else f" {_text(measure.unit)}"


def _chip(verdict: str) -> str:
    word = VERDICT_WORDS.get(verdict, verdict)
    return f'<span class="chip {_tone(verdict)}">{_text(word)}</span>'


def _tone(verdict: str) -> str:
    return "good" if verdict in _GOOD else "bad" if verdict in _BAD else "open"


def _figure(written: str) -> str:
    """Text with true minus signs before its numbers."""
    return _text(re.sub(r"(?<![\w-])-(?=[\d∞])", "−", written))


def _text(value: str) -> str:
    return html.escape(value, quote=True)
