"""The pages in a real browser, over a scripted engine."""

from __future__ import annotations

import re
from pathlib import Path

from serve.conftest import Site, build_responder, build_site, listening, says
from serve.studio.chromium import BROWSER, api, send
from serve.studio.conftest import with_studio
from serve.studio.story import RIGHT, WRONG, build_story
from serve.studio.test_studio_api import build_run, serve_as_run
from timechat.conversation import Message
from timechat.engine.fake import FakeEngine
from timechat.engine.protocol import Request
from timechat.ledger.annotation import open_queue
from timechat.ledger.database import open_ledger
from timechat.ledger.judging import Answer, Item
from timechat.serve.registry import Served

pytestmark = BROWSER

ATTACKS = [
    "<script>window.hacked=1</script>",
    "<img src=x onerror=window.hacked=1>",
    '<img src="https://evil.example/pixel.png">',
    "![p](https://evil.example/pixel.png)",
    "[x](javascript:window.hacked=1)",
    "[x](data:text/html,<script>window.hacked=1</script>)",
    "<iframe srcdoc='<script>parent.hacked=1</script>'></iframe>",
    "<svg onload=window.hacked=1>",
    '<a href="javascript:window.hacked=1">x</a>',
    "```\n</code></pre><script>window.hacked=1</script>\n```",
    "**<b onmouseover=window.hacked=1>x</b>**",
    "> " * 3000 + "deep",
    "<style>@import 'https://evil.example/a.css'</style>",
    "<meta http-equiv=refresh content='0;url=https://evil.example'>",
    "<form action=https://evil.example><button>x</button></form>",
    "\u202egnihton",
]


def test_an_answer_streams_is_kept_and_is_found_again(studio: Site, page: api.Page) -> None:
    with listening(studio) as address:
        page.goto(address)
        send(page, "Good day to you")
        api.expect(page.get_by_role("log")).to_contain_text("Grüß Gott, 🙂 friend.")
        api.expect(page.get_by_role("log")).to_contain_text("first word")
        page.get_by_role("button", name="New chat").click()
        api.expect(page.get_by_role("log")).not_to_contain_text("friend")
        page.get_by_label("Search conversations").fill("friend")
        page.get_by_role("button", name="Good day to you", exact=True).click()
        api.expect(page.get_by_role("log")).to_contain_text("Grüß Gott, 🙂 friend.")


def test_stop_keeps_what_was_delivered_and_frees_the_engine(tmp_path: Path, page: api.Page) -> None:
    engine = FakeEngine(says("word " * 400), interval_s=0.05)
    site = with_studio(build_site(engine), tmp_path)
    with listening(site) as address:
        page.goto(address)
        send(page, "Talk")
        api.expect(page.locator(".words").first).to_contain_text("word word")
        page.keyboard.press("Escape")
        api.expect(page.get_by_role("log")).to_contain_text("stopped")
        page.wait_for_timeout(300)
        assert len(engine.cancelled) == 1
        kept = page.locator(".words").first.inner_text()
        page.reload()
        page.get_by_role("button", name="Talk", exact=True).click()
        assert page.locator(".words").first.inner_text() == kept


def test_an_edited_question_and_a_second_answer_replace_what_followed(
    studio: Site, page: api.Page
) -> None:
    with listening(studio) as address:
        page.goto(address)
        send(page, "First words")
        page.get_by_title("Answer again").click()
        api.expect(page.locator(".answers")).to_have_count(1)
        api.expect(page.locator(".facts")).to_contain_text("first word")
        page.get_by_title("Edit this message").click()
        api.expect(page.get_by_label("Message")).to_have_value("First words")
        send(page, "Second words")
        api.expect(page.get_by_role("log")).to_contain_text("Second words")
        api.expect(page.get_by_role("log")).not_to_contain_text("First words")


def test_a_correction_is_written_by_keyboard_alone(studio: Site, page: api.Page) -> None:
    with listening(studio) as address:
        page.goto(address)
        send(page, "When?")
        page.get_by_title("Write a better answer").focus()
        page.keyboard.press("Enter")
        page.get_by_label("What should it have said?").fill("At nine.")
        page.get_by_role("button", name="Save correction").focus()
        page.keyboard.press("Enter")
        api.expect(page.get_by_role("status")).to_contain_text("Saved")
        page.goto(f"{address}/queue")
        page.get_by_label("Your name").fill("Ada")
        page.keyboard.press("Tab")
        api.expect(page.locator("#progress")).to_contain_text("1 of 1 judged")


def test_the_better_of_two_is_ticked_and_chosen_by_keys_alone(
    studio: Site, page: api.Page, tmp_path: Path
) -> None:
    queue = open_queue(open_ledger(tmp_path / "ledger.db"), "corrections", annotators=2)
    pairs = [
        Item("choose", (Message("user", f"Door {i}?"),), (Answer("Green."), Answer("Red.")))
        for i in range(2)
    ]
    queue.add(pairs)
    with listening(studio) as address:
        page.goto(f"{address}/queue")
        page.get_by_label("Your name").fill("Ada")
        page.keyboard.press("Tab")
        boxes = page.get_by_role("group", name="The better answer is").get_by_role("checkbox")
        api.expect(boxes).to_have_count(4)
        page.locator("body").click()
        page.keyboard.press("5")
        api.expect(page.get_by_label("5 clearer")).to_be_checked()
        # A box that has the focus takes the space bar, and leaves the other keys theirs.
        page.get_by_label("8 shorter").focus()
        page.keyboard.press("Space")
        page.keyboard.press("3")
        api.expect(page.locator("#status")).to_contain_text("names none")
        page.keyboard.press("2")
        api.expect(page.locator("#progress")).to_contain_text("1 by you")
        api.expect(page.get_by_label("5 clearer")).not_to_be_checked()
        page.keyboard.press("4")
        api.expect(page.locator("#progress")).to_contain_text("2 by you")
    assert [j.ticks for j in queue.judgements()] == [("clearer", "shorter"), ()]


def test_two_models_answer_side_by_side_unnamed_and_one_is_chosen(
    studio: Site, page: api.Page
) -> None:
    opened = studio.open

    async def open_both() -> None:
        await opened()
        second = build_responder(FakeEngine(says("Hello friend.")))
        await studio.registry.add(Served("other", second, "d2"))

    studio.open = open_both  # type: ignore[method-assign]
    with listening(studio) as address:
        page.goto(address)
        page.get_by_label("Two side by side").check()
        page.get_by_label("Without names").check()
        send(page, "Hi")
        api.expect(page.get_by_label("Answer A")).to_be_visible()
        api.expect(page.get_by_label("Answer B")).to_be_visible()
        page.get_by_role("button", name="This one is better").first.click()
        api.expect(page.get_by_role("article", name="other")).to_be_visible()
        api.expect(page.get_by_role("status")).to_contain_text("Noted")


def test_nothing_that_a_model_writes_is_executed_or_fetched(tmp_path: Path, page: api.Page) -> None:
    def attack(request: Request) -> list[int]:
        return says("\n\n".join(ATTACKS))(request)

    site = with_studio(build_site(FakeEngine(attack, window=100_000)), tmp_path)
    with listening(site) as address:
        page.goto(address)
        send(page, ATTACKS[0])
        api.expect(page.locator(".facts").first).to_contain_text("first word")
        assert page.evaluate("window.hacked") is None
        assert page.locator(".words :is(script, img, iframe, svg, style, form, meta)").count() == 0
        hrefs = page.eval_on_selector_all(".words a", "nodes => nodes.map(n => n.href)")
        assert all(href.startswith(("http://", "https://")) for href in hrefs)


def test_a_phone_shows_the_chat_and_opens_the_list_on_demand(studio: Site, page: api.Page) -> None:
    page.set_viewport_size({"width": 375, "height": 700})
    with listening(studio) as address:
        page.goto(address)
        api.expect(page.get_by_role("button", name="New chat")).to_be_hidden()
        page.get_by_role("button", name="Chats").click()
        api.expect(page.get_by_role("button", name="New chat")).to_be_visible()
        page.get_by_role("button", name="New chat").click()
        send(page, "Hi")
        api.expect(page.get_by_role("log")).to_contain_text("friend")
        assert page.evaluate("document.documentElement.scrollWidth") <= 375


def test_the_runs_page_draws_the_curve_and_the_six_checks(
    site: Site, tmp_path: Path, page: api.Page
) -> None:
    run = build_run(tmp_path / "runs" / "shop")
    with_studio(site, tmp_path)
    serve_as_run(site, run)
    with listening(site) as address:
        page.goto(f"{address}/runs")
        api.expect(page.get_by_role("img", name="loss from 2.00 to 1.50")).to_be_visible()
        api.expect(page.get_by_text("all rows")).to_be_visible()
        page.get_by_role("link", name="chat with it").click()
        api.expect(page.locator("#model")).to_have_value("shop")


def test_a_wrong_answer_is_corrected_learned_switched_to_and_taken_back(
    tmp_path: Path, page: api.Page
) -> None:
    site, _ = build_story(tmp_path, step_s=0.5)
    with listening(site) as address:
        page.goto(address)
        send(page, "When do you open?")
        api.expect(page.get_by_role("log")).to_contain_text(WRONG)
        page.get_by_title("Write a better answer").click()
        page.get_by_label("What should it have said?").fill(RIGHT)
        page.get_by_label("The fact itself").fill("9:30")
        page.get_by_label("Other ways to ask").fill("What time do you open?")
        page.get_by_role("button", name="Save correction").click()
        api.expect(page.locator("#status")).to_contain_text("learn from it")
        page.get_by_role("link", name="Corrections").click()
        api.expect(page.locator("#learn-what")).to_contain_text("1 correction of shop stands")
        page.get_by_role("button", name="Learn from them").click()
        api.expect(page.locator("#learn-doing")).to_contain_text("learning")
        page.get_by_role("button", name="Switch to version 1").click()
        api.expect(page.locator("#learn-status")).to_contain_text("answers now")
        api.expect(page.locator("#learn-what")).to_contain_text("Version 1 answers")
        for words in ("Corrections in other words", "Earlier test set", "General ability"):
            api.expect(page.get_by_role("region", name="What was asked")).to_contain_text(words)
        page.get_by_role("link", name="Chat").click()
        send(page, "What time do you open?")
        api.expect(page.get_by_role("log")).to_contain_text(RIGHT)
        page.get_by_role("link", name="Corrections").click()
        page.get_by_role("button", name="Back to the version before").click()
        api.expect(page.locator("#learn-what")).to_contain_text("as it was trained")
        page.get_by_role("link", name="Chat").click()
        send(page, "What time do you open?")
        api.expect(page.get_by_role("log")).to_contain_text(WRONG)


def test_two_tabs_talk_at_once_and_both_conversations_are_kept(
    studio: Site, page: api.Page
) -> None:
    with listening(studio) as address:
        other = page.context.new_page()
        for tab in (page, other):
            tab.goto(address)
        send(page, "From the first tab")
        send(other, "From the second tab")
        for tab in (page, other):
            api.expect(tab.get_by_role("log")).to_contain_text("friend")
            api.expect(tab.locator(".facts")).to_contain_text("first word")
        page.reload()
        entries = page.locator("#conversations .open")
        api.expect(entries).to_have_count(2)
        assert set(entries.all_inner_texts()) == {"From the first tab", "From the second tab"}


def test_the_dark_of_the_system_is_the_dark_of_the_page(studio: Site, page: api.Page) -> None:
    with listening(studio) as address:
        shades: list[int] = []
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            page.goto(address)
            colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
            shades.append(sum(map(int, re.findall(r"\d+", colour))))
        assert shades[1] < 150 < 600 < shades[0]


def test_the_policy_lets_in_no_inline_script_and_no_foreign_host(
    studio: Site, page: api.Page
) -> None:
    with listening(studio) as address:
        for path in ("/", "/queue", "/runs"):
            answer = page.goto(f"{address}{path}")
            assert answer is not None
            policy = answer.headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            refused = page.evaluate(
                """() => new Promise((done) => {
                  const tell = (e) => done(e.violatedDirective);
                  document.addEventListener("securitypolicyviolation", tell);
                  const script = document.createElement("script");
                  script.textContent = "window.hacked = 1";
                  document.body.append(script);
                })"""
            )
            assert refused.startswith("script-src")
            assert page.evaluate("window.hacked") is None
            assert page.locator("[style], [onclick], script:not([src])").count() <= 1
