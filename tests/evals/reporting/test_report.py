"""The three files of a report: the contract of the JSON, and that no data can break the pages."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from timechat.evals.figures import write_change, write_level
from timechat.evals.reporting.plots import choose_ticks, draw_chart, smooth, thin
from timechat.evals.reporting.report import headline, write_report
from timechat.evals.statistics.compare import compare
from timechat.records import Check, Measure, Report, Sample, Score

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</style></title><b onclick='x'>",
    "a | b\n| c `d` ![x](http://evil.example/x.png)",
    "```\n# out of the fence",
    "\ud800 lone \x00 nul",
)
TASK = Measure("answer score", 0.02, 0.71, 0.69, (0.61, 0.77), 136, 34, "improved", p_value=1e-4)
LIKELIHOOD = Measure(
    *("likelihood", -3.2, -1.77, 1.43, (1.2, 1.6), 136, 34, "improved"), "nats per answer token"
)
RETENTION = Measure(
    *("general ability", 0.74, 0.731, -0.009, (-0.024, 0.006), 420, 420, "kept"),
    note="margin 5 points",
)
CHECKS = tuple(
    Check(name, name != "export", f"figure of {name}")
    for name in ("template", "rows", "gradient", "resume", "export", "retention")
)
CURVES = {
    "train": [(1, 3.0), (2, 2.0), (3, 1.5)],
    "validation": [(0, 3.1), (3, 1.9)],
    "accuracy": [(0, 0.1), (3, 0.8)],
}
REPORT = Report(
    verdict="improved",
    headline="It got better",
    checks=CHECKS,
    task=TASK,
    retention=RETENTION,
    measures=(TASK, LIKELIHOOD, RETENTION),
    samples=(Sample("Q?", "no", "yes", "yes", "g", 0.0, 1.0),),
    groups={"g": {"before": 0.0, "after": 1.0, "difference": 1.0, "n": 4.0}},
    run={"steps": 184, "seconds": 155.3, "learning_rate": 1e-3, "peak_bytes": 2**31},
)


class Tags(HTMLParser):
    """Collects what a browser would see: tags, attributes, text; and that tags are balanced."""

    VOID = frozenset({"meta", "line", "rect", "circle", "polyline"})

    def __init__(self):
        super().__init__()
        self.names, self.attributes, self.open, self.text = set(), set(), [], []

    def handle_starttag(self, tag, attrs):
        self.names.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.names.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def write(tmp_path, report, curves=CURVES):
    write_report(report, tmp_path, curves)
    return [(tmp_path / f"report.{end}").read_text("utf-8") for end in ("json", "md", "html")]


def parse(page):
    tags = Tags()
    tags.feed(page)
    tags.close()
    assert tags.open == []
    return tags


def make_hostile(text):
    measure = replace(TASK, name=text, unit=text, note=text)
    return replace(
        REPORT,
        headline=text,
        checks=(Check(text, True, text),),
        task=measure,
        measures=(measure, LIKELIHOOD),
        samples=(Sample(text, text, text, text, text, 1.0, 0.0),),
        groups={text: {"difference": -1.0}},
        run={text: text, "base": text},
    )


def test_json_holds_the_contract(tmp_path):
    content = json.loads(write(tmp_path, REPORT)[0])
    assert content["verdict"] == "improved"
    assert [check["name"] for check in content["checks"]] == [check.name for check in CHECKS]
    assert all(set(check) == {"name", "passed", "figure"} for check in content["checks"])
    wanted = {"before", "after", "difference", "ci95", "n", "clusters", "verdict"}
    for measure in (content["task"], content["retention"], *content["measures"]):
        assert wanted <= set(measure)
        assert len(measure["ci95"]) == 2
    assert len(content["measures"]) == 3
    assert {"question", "before", "after", "reference"} <= set(content["samples"][0])


def test_json_is_strict_where_a_number_is_not_finite(tmp_path):
    endless = replace(TASK, ci95=(-math.inf, math.inf), p_value=math.nan)
    text, *_ = write(tmp_path, replace(REPORT, task=endless, measures=(endless,)))
    assert "Infinity" not in text
    assert "NaN" not in text
    assert json.loads(text)["task"]["ci95"] == [None, None]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_adds_no_tag_and_no_attribute(tmp_path, text):
    plain = parse(write(tmp_path / "plain", make_hostile("plain"))[2])
    page = write(tmp_path / "hostile", make_hostile(text))[2]
    hostile = parse(page)
    assert hostile.names == plain.names
    assert hostile.attributes == plain.attributes
    assert "script" not in hostile.names
    assert "img" not in hostile.names
    shown = "".join(hostile.text)
    assert text.replace("\ud800", "\ufffd") in shown


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_inside_its_cell_or_fence_in_markdown(tmp_path, text):
    page = write(tmp_path, make_hostile(text))[1]
    outside, fence, num_cells = [], "", set()
    for line in page.split("\n"):
        if fence:
            fence = "" if line == fence else fence
        elif opening := re.match("(`{3,})text$", line):
            fence = opening[1]
        else:
            outside.append(line)
            if line.startswith("| "):
                num_cells.add(len(re.findall(r"(?<!\\)\|", line)) - 1)
    assert fence == ""
    assert num_cells <= {2, 3, 9}
    for line in outside:
        assert "<" not in line
        assert "](" not in line
        assert "out of the fence" not in line or not line.startswith("#")


def test_page_fetches_nothing_and_forbids_it(tmp_path):
    page = write(tmp_path, REPORT)[2]
    assert "default-src 'none'" in page
    assert "http://" not in page
    assert "https://" not in page
    assert not {"script", "link", "img", "iframe"} & parse(page).names
    assert not re.search(r"url\(|@import|\ssrc=|\shref=|\son\w+=", page)


def test_page_tells_the_whole_story(tmp_path):
    text = " ".join(parse(write(tmp_path, REPORT)[2]).text)
    for wanted in (
        *("Improved", "It got better", "2 %", "71 %", "+69 points", "[61, 77]"),
        *("−0.9 points", "margin 5 points", "figure of export", "✗", "+1.43"),
        *("validation loss", "validation accuracy", "better, 0 → 100 %"),
        *("2 min 35 s", "2.0 GiB", "0.001", "Not measured"),
    ):
        assert wanted in text, wanted


def test_strengths_and_answers_as_texts_are_told_in_both_forms(tmp_path):
    def at(strength, after):
        task = {"after": after, "difference": after, "ci95": (0.0, 0.9), "verdict": "improved"}
        kept = {"after": 0.6, "difference": -0.04, "ci95": (-0.1, 0.02), "verdict": "undecided"}
        found = {"strength": strength, "accuracy": 0.5, "error": 0.01, "drift": 0.07}
        return found | {"task": task, "retention": kept}

    settings = [at(0.0, 0.1), at(0.75, 0.6), at(1.0, 0.7)]
    side = {"mean_words": 7.25, "distinct_2": 0.5, "empty": 3, "first_token_ms": 41.6}
    details = {
        "slider": {"chosen": 0.75, "used": 1.0, "settings": settings},
        "answers": {"before": side, "after": {**side, "first_token_ms": None}},
    }
    _, markdown, page = write(tmp_path, replace(REPORT, details=details))
    seen = " ".join(parse(page).text)
    for wanted in ("0.75 (best on validation)", "1 (in use)", "+0.070 nats", "42 ms", "7.2"):
        assert wanted in markdown, wanted
        assert wanted in seen, wanted
    assert "not measured" in markdown
    assert page.count('<svg class="chart"') == 3


@pytest.mark.parametrize("curves", [{}, {"train": []}, {"train": [(1, math.nan)]}])
def test_empty_curves_leave_the_chart_out(tmp_path, curves):
    page = write(tmp_path, replace(REPORT, samples=(), groups={}, run={}), curves)[2]
    assert "Loss and accuracy" not in page
    assert "Side by side" not in page
    parse(page)


def test_one_point_and_flat_lines_are_drawn(tmp_path):
    curves = {"train": [(1, 2.0)], "validation": [(1, 0.0), (2, 0.0)], "accuracy": [[5, 1.0]]}
    page = write(tmp_path, REPORT, curves)[2]
    assert "nan" not in "".join(re.findall('<svg class="chart".*?</svg>', page))
    assert page.count('<svg class="chart"') == 2


def test_unknown_curve_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="'loss'"):
        write_report(REPORT, tmp_path, {"loss": [(1, 2.0)]})
    assert list(tmp_path.iterdir()) == []


def test_many_groups_show_both_ends_and_say_how_many_are_between(tmp_path):
    groups = {f"g{i:02d}": {"before": 0.0, "after": i / 40} for i in range(40)}
    page = write(tmp_path, replace(REPORT, groups=groups))[2]
    assert page.index(">g39<") < page.index("24 groups between") < page.index(">g00<")
    assert ">g20<" not in page


def test_many_measures_are_folded_away_but_for_bad_news(tmp_path):
    others = [replace(LIKELIHOOD, name=f"other {i}") for i in range(8)]
    others[6] = replace(others[6], verdict="lost")
    page = write(tmp_path, replace(REPORT, measures=(TASK, RETENTION, *others)))[2]
    fold = page.index("<summary>4 more measures")
    for name in ("answer score", "general ability", "other 0", "other 2", "other 6"):
        assert page.index(f'scope="row">{name}<') < fold
    for name in ("other 3", "other 5", "other 7"):
        assert page.index(f'scope="row">{name}<') > fold
    assert "more measures" not in write(tmp_path, REPORT)[2]


def test_a_command_in_a_finding_is_set_as_code(tmp_path):
    finding = "`timechat compare RUN` asks `<b>every</b>` one"
    page = write(tmp_path, replace(REPORT, findings=(finding,)))[2]
    assert "<code>timechat compare RUN</code> asks <code>&lt;b&gt;every" in page


def test_headline_tells_figures_interval_and_margin():
    assert headline(TASK, LIKELIHOOD, RETENTION, "improved", groups="facts") == (
        "On 136 held-out questions (34 facts), answer score rose from 2 % to 71 % (+69 points, "
        "95 % interval 61 to 77); likelihood +1.43 nats per answer token [1.20, 1.60]; general "
        "ability kept: 74.0 % to 73.1 % (-0.9 points [-2.4, +0.6], margin 5 points)"
    )


def test_headline_does_not_claim_what_the_verdict_does_not():
    fallen = replace(TASK, difference=-0.02, after=0.0, ci95=(-0.05, 0.001))
    text = headline(fallen, None, RETENTION, "inconclusive")
    assert "fell from 2.0 % to 0.0 %" in text
    assert text.endswith("all together inconclusive")
    assert headline(fallen, None, RETENTION, "not_improved").endswith("not an improvement")


def test_ticks_are_round_and_enclose_the_data():
    assert choose_ticks(0.3, 3.9, 5) == [0, 1, 2, 3, 4]
    ticks = choose_ticks(-0.0013, 0.0021, 5)
    assert ticks[0] <= -0.0013
    assert ticks[-1] >= 0.0021


def test_long_curves_are_thinned_and_keep_their_mean():
    points = [(float(i), float(i % 7)) for i in range(10_000)]
    few = thin(points)
    assert len(few) <= 400
    assert sum(y for _, y in few) / len(few) == pytest.approx(3.0, abs=0.01)
    line = [(float(i), 2.0 * i) for i in range(50)]
    assert [y for _, y in smooth(line)] == pytest.approx([y for _, y in line])
    assert draw_chart([], label="nothing") == ""


def test_what_is_better_when_lower_is_shown_as_it_was_counted() -> None:
    old = [Score(f"q{i}", f"q{i}", float(i < 30), "refusal/1") for i in range(200)]
    new = [Score(f"q{i}", f"q{i}", float(i < 10), "refusal/1") for i in range(200)]
    found = compare("refusals", old, new, kind="gain", higher_is_better=False, unit="share")
    assert (found.before, found.difference) == (-0.15, 0.1), "the record stays as it was"
    assert (write_level(found.before, found), write_level(found.after, found)) == (
        "15.0 %",
        "5.0 %",
    )
    assert write_change(found) == "+10.0 points"
    assert "lower is better" in found.note
