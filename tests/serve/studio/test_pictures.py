"""The pictures of the docs, made by tests: `TIMECHAT_SHOTS=DIR` keeps them.

Each page is looked at as it is pictured: nothing may stick out of it sideways.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import httpx
import pytest

from serve.conftest import build_responder, listening, says
from serve.studio.chromium import BROWSER, api, send
from serve.studio.story import RIGHT, build_story
from serve.studio.test_learning import SAID
from timechat.conversation import Message
from timechat.engine.fake import FakeEngine
from timechat.ledger.judging import Answer, Item
from timechat.serve.registry import Served

pytestmark = BROWSER
# What a repository bears.
MOST_BYTES = 150_000
SPEECH = (
    "We open at **8** on weekdays.\n\n- Parcels go out on Thursday\n- The counter closes at 5\n\n"
    "```python\nprint('good morning')\n```"
)
PLAN = {
    "steps": {"value": 94, "rule": "8 epochs of 439 rows in batches of 37"},
    "learning_rate": {"value": 0.002, "rule": "LoRA of rank 16 on a model of 135 million weights"},
}
CHECKS = [
    {"name": "template", "passed": True, "figure": "439 of 439 rows are trained as served"},
    {"name": "rows", "passed": True, "figure": "649 in = 439 trained + 0 dropped + 210 held out"},
    {"name": "gradient", "passed": True, "figure": "12 rows in 1 and in 3 micro-batches agree"},
    {"name": "resume", "passed": True, "figure": "2 + 2 steps equal 4 steps, byte for byte"},
    {"name": "export", "passed": True, "figure": "log-probabilities differ by 0.0245 nats a token"},
    {"name": "retention", "passed": True, "figure": "kept: 65.3% to 65.6% of general questions"},
]


@pytest.fixture
def shots(tmp_path: Path) -> Path:
    folder = Path(os.environ.get("TIMECHAT_SHOTS") or tmp_path / "shots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def shoot(page: api.Page, folder: Path, name: str) -> None:
    page.evaluate("document.fonts.ready")
    wide = page.evaluate("document.documentElement.scrollWidth")
    assert page.viewport_size is not None
    assert wide <= page.viewport_size["width"], f"{name} sticks out"
    path = folder / f"{name}.png"
    page.screenshot(path=path)
    assert path.stat().st_size < MOST_BYTES


def fill(run: Path) -> None:
    """A run as it looks at its end."""
    curve = [{"step": s, "loss": 0.4 + 2.6 * 0.96**s} for s in range(1, 95)]
    seen = [{"step": s, "validation_loss": 0.9 + 2.2 * 0.95**s} for s in range(0, 95, 12)]
    lines = "".join(json.dumps(row) + "\n" for row in [*curve, *seen])
    (run / "metrics.jsonl").write_text(lines)
    (run / "plan.json").write_text(json.dumps({"numbers": PLAN}))
    watched = [(0, "The company is the largest in the world."), (48, "At 8."), (94, RIGHT)]
    rows = [
        {"step": s, "question": "When do you open?", "answer": a, "reference": RIGHT}
        for s, a in watched
    ]
    (run / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sample = {
        "question": "What time do you open?", "before": "I am a language model.",
        "after": RIGHT, "reference": RIGHT,
    }  # fmt: skip
    headline = "On 160 held-out questions (40 groups), answer score rose from 0 % to 56 %."
    report = {
        "verdict": "improved", "headline": headline, "checks": CHECKS, "samples": [sample],
    }  # fmt: skip
    (run / "report.json").write_text(json.dumps(report))


def test_the_chat_and_its_corrections(tmp_path: Path, page: api.Page, shots: Path) -> None:
    site, _ = build_story(tmp_path, answers=(SPEECH, SPEECH))
    opened = site.open

    async def open_both() -> None:
        await opened()
        if not any(model.name == "starter" for model in site.registry):
            other = build_responder(FakeEngine(says("I am sorry, I do not know your hours.")))
            await site.registry.add(Served("starter", other, "d2"))

    site.open = open_both  # type: ignore[method-assign]
    with listening(site) as address:
        page.goto(address)
        send(page, "When do you open, and what else should I know?")
        api.expect(page.locator(".facts")).to_contain_text("tokens/s")
        shoot(page, shots, "chat")
        page.get_by_label("Two side by side").check()
        page.get_by_role("button", name="New chat").click()
        send(page, "When do you open?")
        for facts in (page.locator(".facts").first, page.locator(".facts").last):
            api.expect(facts).to_contain_text("tokens/s")
        shoot(page, shots, "side-by-side")
        page.get_by_label("Two side by side").uncheck()
        page.get_by_title("Write a better answer").first.click()
        page.get_by_label("What should it have said?").fill(RIGHT)
        page.get_by_label("The fact itself").fill("9:30")
        page.get_by_label("Other ways to ask").fill(
            "What time do you open?\nFrom when are you there?"
        )
        shoot(page, shots, "correct")
        page.keyboard.press("Escape")
        page.set_viewport_size({"width": 375, "height": 700})
        page.emulate_media(color_scheme="dark")
        shoot(page, shots, "phone-dark")
        page.get_by_role("button", name="Chats").click()
        shoot(page, shots, "phone-list")


def test_learning_and_the_queue(tmp_path: Path, page: api.Page, shots: Path) -> None:
    site, run = build_story(tmp_path, step_s=0.0)
    with listening(site) as address:
        with httpx.Client(base_url=address, timeout=60) as client:
            client.post("/studio/corrections", json=SAID)
            client.post("/studio/learn", json={"model": "shop", "action": "start"})
        asked = (Message("user", "Which tin is the varnish in?"),)
        item = Item("judge", asked, (Answer("The varnish is in the **red** tin.", "shop"),))
        site.app.state.desk.queue_at(run).add([item])
        page.goto(f"{address}/queue")
        page.get_by_label("Your name").fill("Ada")
        page.keyboard.press("Tab")
        api.expect(page.get_by_role("button", name="1 Right")).to_be_visible()
        api.expect(page.get_by_role("button", name="Switch to version 1")).to_be_visible()
        shoot(page, shots, "queue")
        page.get_by_role("button", name="Switch to version 1").click()
        api.expect(page.locator("#learn-status")).to_contain_text("answers now")
        page.locator("#learning").scroll_into_view_if_needed()
        shoot(page, shots, "learned")
        page.set_viewport_size({"width": 375, "height": 700})
        shoot(page, shots, "phone-learned")


def test_the_runs_page(tmp_path: Path, page: api.Page, shots: Path) -> None:
    site, run = build_story(tmp_path)
    fill(run)
    page.set_viewport_size({"width": 1200, "height": 1400})
    with listening(site) as address:
        page.goto(f"{address}/runs")
        api.expect(page.get_by_role("heading", name="Watched answers")).to_be_visible()
        api.expect(page.get_by_role("table", name="When do you open?")).to_contain_text(RIGHT)
        shoot(page, shots, "runs")
        page.emulate_media(color_scheme="dark")
        page.set_viewport_size({"width": 375, "height": 700})
        shoot(page, shots, "phone-runs")


def test_a_run_that_still_trains_is_drawn_anew_without_closing_what_is_open(
    tmp_path: Path, page: api.Page
) -> None:
    site, run = build_story(tmp_path)
    fill(run)
    (run / "report.json").unlink()
    with listening(site) as address:
        page.goto(f"{address}/runs")
        api.expect(page.get_by_role("img", name="over 94 steps")).to_be_visible()
        page.get_by_text("Plan: every number").click()
        with (run / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": 95, "loss": 0.41}) + "\n")
        api.expect(page.get_by_role("img", name="over 95 steps")).to_be_visible()
        api.expect(page.get_by_text("8 epochs of 439 rows")).to_be_visible()
