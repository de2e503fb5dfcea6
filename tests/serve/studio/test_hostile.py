"""Sixty hostile payloads on their whole way, in a real browser: none runs, none fetches."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest

from serve.conftest import Site, build_site, listening, says
from serve.studio.chromium import BROWSER, api, send
from serve.studio.conftest import with_studio
from serve.studio.hostile import PAYLOADS
from serve.studio.story import build_story
from timechat.conversation import Message
from timechat.engine.fake import FakeEngine
from timechat.evals.reporting.report import write_report
from timechat.ledger.judging import Answer, Item, Suggestion
from timechat.recipe import Data
from timechat.records import Check, Measure, Report, Sample
from timechat.stages.preparing.prepare import prepare

pytestmark = BROWSER
# What may not come out of text: elements that run, fetch, frame or change the page.
FORBIDDEN = ":is(script, img, iframe, svg, math, style, form, meta, base, object, embed, video)"


def assert_unharmed(page: api.Page, where: str = ".words") -> None:
    assert page.evaluate("window.hacked") is None
    assert page.locator(where).locator(FORBIDDEN).count() == 0
    links = page.eval_on_selector_all("a", "all => all.map((a) => a.protocol)")
    assert set(links) <= {"http:", "https:"}
    events = page.evaluate(
        "() => [...document.querySelectorAll('*')].flatMap((n) => n.getAttributeNames())"
        ".filter((name) => name.startsWith('on'))"
    )
    assert events == []


def fill(run: Path) -> None:
    """A run whose every text is hostile: rows, report, version."""
    rows = run / "rows.jsonl"
    lines = [
        {"messages": [{"role": "user", "content": f"{p} {i}"}, {"role": "assistant", "content": p}]}
        for i, p in enumerate(PAYLOADS)
    ]
    rows.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    settings = {"clean": {"residue": "report", "damage": "report"}, "max_dropped": 1.0}
    prepared = prepare(Data(train=(str(rows),), **settings), run / "data", lambda _: None)  # type: ignore[arg-type]
    texts = [row.reference for row in (*prepared.train, *prepared.validation, *prepared.test)]
    assert len(texts) >= 55
    samples = tuple(Sample(p, p, p, p, group=p) for p in texts)
    measure = Measure("m", 0.1, 0.2, 0.1, (0.0, 0.2), 120, 30, "improved", "share", note=texts[0])
    report = Report(
        "improved", texts[0], tuple(Check("template", True, p) for p in texts), measure, measure,
        (measure,), samples, {p: {"before": 0.0, "after": 1.0, "difference": 1.0, "n": 1.0}
                              for p in texts},
        findings=tuple(texts), run={"base": texts[0], "best": texts[1]},
        best=samples, worst=samples,
    )  # fmt: skip
    write_report(report, run, {"train": [(1, 2.0), (2, 1.0)]})
    rows.unlink()


def items_to_judge() -> list[Item]:
    """Half to judge and half to choose from, each with a model's suggestion."""
    return [
        Item(
            ("judge", "choose")[i % 2],
            (Message("user", payload), Message("assistant", payload), Message("user", "More")),
            tuple(Answer(f"{payload} {n}", payload) for n in range(1 + i % 2)),
            suggestions=(Suggestion(payload, payload),) if i % 2 == 0 else (),
        )
        for i, payload in enumerate(PAYLOADS)
    ]


def test_hostile_text_stays_text_in_the_chat_and_its_list(
    tmp_path: Path,
    page: api.Page,
) -> None:
    def attack(_: object) -> list[int]:
        return says("\n\n".join(PAYLOADS))(_)  # type: ignore[arg-type]

    site: Site = with_studio(build_site(FakeEngine(attack, window=100_000)), tmp_path)
    with listening(site) as address:
        page.goto(address)
        for payload in PAYLOADS[:3]:
            send(page, payload)
            last = page.locator(".facts").last
            api.expect(last).to_contain_text("first word")
        assert_unharmed(page)
        page.reload()
        page.locator("#conversations .open").first.click()
        api.expect(page.locator(".words").first).not_to_be_empty()
        assert_unharmed(page, "#talk, #conversations")


def test_hostile_text_stays_text_from_rows_to_report(
    tmp_path: Path,
    page: api.Page,
) -> None:
    site, run = build_story(tmp_path, step_s=0.0)
    fill(run)
    with listening(site) as address:
        with httpx.Client(base_url=address, headers={"Origin": address}, timeout=60) as client:
            for payload in PAYLOADS:
                body = {
                    "conversation": payload[:200].replace("\x00", "") or "c", "model": "shop",
                    "prompt": [{"role": "user", "content": payload}], "answer": payload,
                    "verdict": "correct", "value": payload, "author": "ann",
                }  # fmt: skip
                assert client.post("/studio/corrections", json=body).status_code == 201, payload
        site.app.state.desk.queue_at(run).add(items_to_judge())
        page.goto(f"{address}/queue")
        page.get_by_label("Your name").fill("ben")
        page.keyboard.press("Tab")
        api.expect(page.locator("#learn-what")).to_contain_text("60 corrections of shop stand")
        page.evaluate("document.activeElement.blur()")
        for left in range(len(PAYLOADS), 0, -1):
            api.expect(page.locator("#progress")).to_contain_text(f"{left} left for you")
            assert page.locator("#item article").count() > 0
            assert_unharmed(page, "#item")
            page.keyboard.press("s")
        api.expect(page.locator("#item")).to_contain_text("Nothing is left")
        page.goto(f"{address}/runs")
        api.expect(page.get_by_role("heading", name="Six checks")).to_be_visible()
        assert_unharmed(page, "table")
        answer = page.goto(f"{address}/studio/runs/shop/report")
        assert answer is not None
        assert "sandbox" in answer.headers["content-security-policy"]
        assert page.locator(":is(script, iframe, img[src^=http], form, base, object)").count() == 0


@pytest.mark.parametrize("folder", ["own"])
def test_a_report_opened_from_the_disk_runs_and_fetches_nothing(
    tmp_path: Path,
    page: api.Page,
    folder: str,
) -> None:
    """Without the server's policy around it."""
    run = tmp_path / folder
    run.mkdir()
    fill(run)
    page.set_content((run / "report.html").read_text(encoding="utf-8"))
    assert page.evaluate("window.hacked") is None
    assert page.locator(":is(script, iframe, img[src^=http], form, base, object)").count() == 0
