"""What stands in a report beside the measures: arms, labels, the judge, marked changes.

Everything is given as the plain values of `Report.details`; every string is escaped here before it
becomes HTML. The frame of the page is `page`'s.
"""

from __future__ import annotations

import difflib
import html
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from timechat.evals.reporting.plots import Line, draw_chart

SLIDER_COLUMNS = (
    *("strength", "validation accuracy", "drift of general answers", "answer score on the test"),
    *("against the base", "general ability", "general ability kept"),
)
TEXT_COLUMNS = ("answers", "mean words", "different word pairs", "empty", "first token")
ARM_COLUMNS = (
    "arm",
    "score",
    "against the base",
    "against the tuned model",
    "enough",
    "s a question",
    "first token",
)
MAX_MARKED = 4_000
"""Longer answers are shown without marks: comparing words takes the square of their number."""


def list_arms(arms: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """One row an arm, in words."""
    return [
        (
            str(arm["name"]),
            f"{arm['against_base']['after']:.1%}",
            _points(arm["against_base"]),
            _points(arm["against_tuned"]),
            "yes" if arm["enough"] else "no",
            f"{arm['seconds_per_answer']:.2f}",
            _wait(arm["cost"].get("first_token_ms")),
        )
        for arm in arms
    ]


def draw_arms(details: Mapping[str, Any]) -> str:
    arms = details.get("arms")
    return _table(ARM_COLUMNS, list_arms(arms)) if arms else ""


def list_slider(slider: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """One row a strength, in words; the chosen one and the one in use are marked."""
    rows: list[tuple[str, ...]] = []
    for at in slider["settings"]:
        marks = [
            mark
            for mark, key in (("best on validation", "chosen"), ("in use", "used"))
            if at["strength"] == slider[key]
        ]
        rows.append(
            (
                f"{at['strength']:g}" + (f" ({', '.join(marks)})" if marks else ""),
                f"{at['accuracy']:.1%}",
                f"{at['drift']:+.3f} nats a token",
                f"{at['task']['after']:.1%}",
                _points(at["task"]),
                f"{at['retention']['after']:.1%}",
                _points(at["retention"]),
            )
        )
    return rows


def draw_slider(details: Mapping[str, Any]) -> str:
    """What each strength gives and costs, drawn and as a table."""
    slider = details.get("slider")
    if not slider:
        return ""

    def points(name: str) -> list[tuple[float, float]]:
        return [(at["strength"], at[name]["after"]) for at in slider["settings"]]

    lines = [
        Line("answer score", points("task"), "first", dots=True),
        Line("general ability", points("retention"), "third", dots=True),
    ]
    chart = draw_chart(lines, label="What each strength gives", percent=True, across="strength")
    caption = "On the test questions. Which one to take was chosen on validation rows."
    return f"<figure>{chart}<figcaption>{caption}</figcaption></figure>" + _table(
        SLIDER_COLUMNS, list_slider(slider)
    )


def list_texts(answers: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Length, variety, empty answers and the wait for the first token, a row a side."""
    rows: list[tuple[str, ...]] = []
    for side in ("before", "after"):
        if side not in answers:
            continue
        found = answers[side]
        rows.append(
            (
                side,
                f"{found['mean_words']:.1f}",
                f"{found['distinct_2']:.0%}",
                str(found["empty"]),
                _wait(found.get("first_token_ms")),
            )
        )
    return rows


def draw_texts(details: Mapping[str, Any]) -> str:
    answers = details.get("answers")
    return _table(TEXT_COLUMNS, list_texts(answers)) if answers else ""


def list_people(people: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Who chose, how often, and what came of it."""
    names = {"first": "the old answer", "second": "the new answer"}
    return [
        ("people", str(people["people"])),
        ("questions", str(people["measure"]["n"])),
        ("the new answers' share of wins", f"{people['measure']['after']:.1%}"),
        ("against an even share", _points(people["measure"])),
        *((names.get(str(said), str(said)), str(n)) for said, n in people["verdicts"].items()),
        *((f"chosen as {one['tick']}", _old_and_new(one)) for one in people["ticks"]),
        *((f"by {name}", _picks_of(said)) for name, said in people["by_person"].items()),
        *(
            (f"agreement: {a['name']}", f"{a['value']:.2f}")
            for a in people["agreement"]
            if a.get("value") is not None
        ),
    ]


def _old_and_new(ticked: Mapping[str, Any]) -> str:
    """How often either answer got a tick, and how far the new one is ahead; no verdict."""
    measure = ticked["measure"]
    low, high = measure["ci95"]
    return (
        f"the new answer {ticked['new']} times ({measure['after']:.1%}), the old one "
        f"{ticked['old']} times ({measure['before']:.1%}): {100 * measure['difference']:+.1f} "
        f"points [{100 * low:+.1f}, {100 * high:+.1f}]"
    )


def _picks_of(said: Mapping[str, Any]) -> str:
    picks = f"{said['picks']} {'pick' if said['picks'] == 1 else 'picks'}"
    if not said["asked_for_ticks"]:
        return f"{picks}, not asked for ticks"
    ticked = [f"{tick} {count}" for tick, count in said["ticks"].items()]
    return f"{picks}, ticked {', '.join(ticked) or 'nothing'}"


def draw_people(details: Mapping[str, Any]) -> str:
    people = details.get("people")
    return _table(("", ""), list_people(people)) if people else ""


def draw_labels(details: Mapping[str, Any]) -> str:
    """Accuracy, macro-F1 and the most frequent mix-ups of both sides."""
    answers = details.get("answers", {})
    sides = {name: answers[name]["labels"] for name in ("before", "after") if "labels" in answers.get(name, {})}  # noqa: E501  # fmt: skip
    if not sides:
        return ""
    rows = [(n, f"{s['accuracy']:.1%}", f"{s['macro_f1']:.3f}") for n, s in sides.items()]
    out = _table(("labels", "accuracy", "macro-F1"), rows)
    mixups = sides.get("after", {}).get("mixups", [])
    if mixups:
        shown = [(str(want), str(got), str(count)) for want, got, count in mixups]
        out += "<p class=detail>What the new model mixes up most:</p>"
        out += _table(("right", "given", "times"), shown)
    return out


def draw_judge(details: Mapping[str, Any]) -> str:
    judge = details.get("judge")
    if not judge:
        return ""
    low, high = judge["length_ci95"]
    rows = [
        ("wins at equal length", f"{judge['length_controlled']:.0%} [{low:.0%}, {high:.0%}]"),
        ("judged alike in both orders", f"{judge['consistency']:.0%}"),
        ("verdicts for the answer shown first", f"{judge['firsts']:.0%}"),
        ("control: equal answers (should be 50 %)", f"{judge['same']:.0%}"),
        ("control: a constant answer wins (should be 0 %)", f"{judge['constant']:.0%}"),
        ("control: an answer said twice wins (at most 50 %)", f"{judge['doubled']:.0%}"),
        ("pairs without a verdict", str(judge["unjudged"])),
    ]
    return _table(("", ""), rows)


def mark_changes(before: str, after: str) -> tuple[str, str]:
    """Both answers as HTML, the words that the other does not have marked."""
    if max(len(before), len(after)) > MAX_MARKED:
        return html.escape(before), html.escape(after)
    old, new = re.findall(r"\s+|\S+", before), re.findall(r"\s+|\S+", after)
    matcher = difflib.SequenceMatcher(None, old, new, autojunk=False)
    left: list[str] = []
    right: list[str] = []
    for kind, a, b, c, d in matcher.get_opcodes():
        left += _marked(old[a:b], "del", kind)
        right += _marked(new[c:d], "ins", kind)
    return "".join(left), "".join(right)


def _marked(words: list[str], tag: str, kind: str) -> Iterator[str]:
    text = html.escape("".join(words))
    if not text:
        return
    yield text if kind == "equal" else f"<{tag}>{text}</{tag}>"


def _wait(milliseconds: float | None) -> str:
    return "not measured" if milliseconds is None else f"{milliseconds:.0f} ms"


def _points(measure: Mapping[str, Any]) -> str:
    low, high = measure["ci95"]
    return (
        f"{100 * measure['difference']:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}], "
        f"{str(measure['verdict']).replace('_', ' ')}"
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    heads = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>'  # noqa: E501
