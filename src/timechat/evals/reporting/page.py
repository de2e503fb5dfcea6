"""The report as one HTML file that can be read offline, on a phone, in light and dark.

No script and nothing fetched: a content security policy forbids both. What stands in it is
`sections`' and, beside the measures, `extras`'.
"""

from __future__ import annotations

from timechat.evals.figures import VERDICT_WORDS
from timechat.evals.reporting.extras import (
    draw_arms,
    draw_judge,
    draw_labels,
    draw_people,
    draw_slider,
    draw_texts,
)
from timechat.evals.reporting.sections import (
    Curves,
    draw_checks,
    draw_costs,
    draw_curves,
    draw_groups,
    draw_measures,
    draw_samples,
    draw_top,
    escape,
)
from timechat.evals.reporting.style import STYLE
from timechat.records import Report

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
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def build_page(report: Report, curves: Curves) -> str:
    """The whole page. `curves` is that of `report.write_report`."""
    title = f"TimeChat report: {VERDICT_WORDS[report.verdict]}"
    sections = (
        draw_top(report),
        _section("Six checks", draw_checks(report)),
        _section("Measures", draw_measures(report)),
        _section("Loss and accuracy", draw_curves(curves)),
        _section("Change per group", draw_groups(report)),
        _section("Without training, and beside it", draw_arms(report.details)),
        _section("How strongly to apply it", draw_slider(report.details)),
        _section("The answers as texts", draw_texts(report.details)),
        _section("Labels", draw_labels(report.details)),
        _section("What people chose", draw_people(report.details)),
        _section("A judge's view", draw_judge(report.details)),
        _section("Gained most", draw_samples(report.best)),
        _section("Lost most", draw_samples(report.worst)),
        _section("Side by side, not chosen by result", draw_samples(report.samples)),
        _section("What it cost", draw_costs(report.run)),
        _section("How to read this", "".join(f"<p>{escape(note)}</p>" for note in FOOTNOTES)),
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(filter(None, sections))
        + "\n</main>\n</body>\n</html>\n"
    )


def _section(title: str, body: str) -> str:
    return f"<section><h2>{title}</h2>{body}</section>" if body else ""
