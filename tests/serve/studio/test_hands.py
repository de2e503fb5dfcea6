"""The pages as people use them: by keys alone, on a phone, too quickly, over a line that breaks."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from serve.conftest import Site, build_site, listening, says
from serve.studio.chromium import BROWSER, api, send
from serve.studio.conftest import with_studio
from serve.studio.story import RIGHT, WRONG, build_story
from timechat.engine.fake import FakeEngine

pytestmark = BROWSER
# Pages opened and closed; from WARM on nothing may grow but by what a kept conversation takes.
PAGES, WARM = int(os.environ.get("TIMECHAT_PAGES", "60")), 20
GROWTH_BYTES = 2**15  # a page, while Python's own pools still fill


def press_until(page: api.Page, key: str, name: str) -> None:
    """Press `key` until the thing named `name` has the focus, as a hand without a mouse does."""
    for _ in range(60):
        page.keyboard.press(key)
        found = page.evaluate(
            "() => { const n = document.activeElement; return n.title || n.ariaLabel"
            " || n.labels?.[0]?.textContent.trim() || n.textContent.trim(); }"
        )
        if found.startswith(name):
            return
    raise AssertionError(f"{key} never reached {name!r}")


def test_the_whole_story_is_told_by_keys_alone(tmp_path: Path, page: api.Page) -> None:
    site, _ = build_story(tmp_path, step_s=0.05)
    keys = page.keyboard
    with listening(site) as address:
        page.goto(address)
        press_until(page, "Tab", "Skip to the message box")
        keys.press("Enter")
        assert page.evaluate("document.activeElement.id") == "words"
        keys.type("When do you open?")
        keys.press("Enter")
        api.expect(page.locator(".facts")).to_contain_text("first word")
        press_until(page, "Shift+Tab", "Write a better answer")
        keys.press("Enter")
        press_until(page, "Tab", "What should it have said?")
        keys.press("Control+A")
        keys.type(RIGHT)
        keys.press("Tab")
        keys.type("9:30")
        keys.press("Tab")
        keys.type("What time do you open?")
        press_until(page, "Tab", "Save correction")
        keys.press("Enter")
        api.expect(page.locator("#status")).to_contain_text("learn from it")
        press_until(page, "Shift+Tab", "Corrections")
        keys.press("Enter")
        api.expect(page.locator("#learn-what")).to_contain_text("1 correction of shop stands")
        press_until(page, "Tab", "Make a new version")
        keys.press("Enter")
        api.expect(page.get_by_role("button", name="Switch to version 1")).to_be_visible()
        press_until(page, "Shift+Tab", "Let the new version answer")
        keys.press("Enter")
        api.expect(page.locator("#learn-what")).to_contain_text("Version 1 answers")


def test_answering_again_by_keys_leaves_the_hand_at_the_message_box(
    studio: Site, page: api.Page
) -> None:
    with listening(studio) as address:
        page.goto(address)
        send(page, "Hi")
        api.expect(page.locator(".facts")).to_contain_text("first word")
        press_until(page, "Shift+Tab", "Answer again")
        page.keyboard.press("Enter")
        api.expect(page.locator("#words")).to_be_focused()
        api.expect(page.locator(".answers")).to_have_count(1)


def test_stopped_answers_can_be_asked_for_again(tmp_path: Path, page: api.Page) -> None:
    engine = FakeEngine(says("word " * 60), interval_s=0.05)
    site = with_studio(build_site(engine), tmp_path)
    with listening(site) as address:
        page.goto(address)
        send(page, "Talk")
        api.expect(page.locator(".words")).to_contain_text("word word")
        page.get_by_role("button", name="Stop").click()
        api.expect(page.locator(".facts")).to_contain_text("stopped")
        engine.interval_s = 0.0
        page.get_by_title("Answer again").click()
        api.expect(page.locator(".facts")).to_contain_text("tokens/s")
        assert page.locator(".words").inner_text().split() == ["word"] * 60
        api.expect(page.get_by_role("button", name="Stop")).to_be_hidden()


def test_who_sends_before_the_models_are_known_is_answered(tmp_path: Path, page: api.Page) -> None:
    site, _ = build_story(tmp_path)
    known = threading.Event()

    def late(route: api.Route) -> None:
        known.wait(0.5)
        route.continue_()

    page.route("**/studio/models", late)
    with listening(site) as address:
        page.goto(address)
        send(page, "When do you open?")
        api.expect(page.get_by_role("log")).to_contain_text(WRONG)


def test_a_line_that_breaks_is_a_fault_and_no_short_answer(studio: Site, page: api.Page) -> None:
    half = 'data: {"choices": [{"delta": {"content": "At ni"}}]}\n\n'
    page.route(
        "**/v1/chat/completions",
        lambda route: route.fulfill(body=half, content_type="text/event-stream"),
    )
    with listening(studio) as address:
        page.goto(address)
        send(page, "When?")
        api.expect(page.locator(".words")).to_contain_text("At ni")
        api.expect(page.locator(".facts.fault")).to_contain_text("the connection ended")
        api.expect(page.get_by_title("Answer again")).to_be_visible()


def test_a_phone_goes_back_to_the_talk_when_a_chat_is_begun_or_opened(
    studio: Site, page: api.Page
) -> None:
    page.set_viewport_size({"width": 375, "height": 700})
    with listening(studio) as address:
        page.goto(address)
        menu = page.get_by_role("button", name="Chats")
        menu.click()
        page.get_by_role("button", name="New chat").click()
        api.expect(page.get_by_role("button", name="New chat")).to_be_hidden()
        api.expect(menu).to_have_attribute("aria-expanded", "false")
        page.get_by_label("Message").click()  # nothing lies over it
        send(page, "Hi")
        api.expect(page.locator(".facts")).to_contain_text("first word")
        menu.click()
        page.get_by_role("button", name="Hi", exact=True).click()
        api.expect(page.get_by_role("button", name="New chat")).to_be_hidden()
        for name in ("Corrections", "Runs"):
            page.get_by_role("link", name=name).click()
            page.wait_for_load_state()
            assert page.evaluate("document.documentElement.scrollWidth") <= 375


def test_pages_that_are_opened_and_closed_leave_nothing_open(
    studio: Site, browser: api.Browser
) -> None:
    """In a real browser; a thousand cut connections are in test_studio_api. docs/studio.md says how
    many pages were measured once, with `TIMECHAT_PAGES`."""
    with listening(studio) as address:
        before = (0, 0, 0)
        context = browser.new_context()
        for i in range(PAGES):
            tab = context.new_page()
            tab.goto(address)
            send(tab, "Hi")
            api.expect(tab.locator(".facts")).to_contain_text("first word")
            tab.close()
            if i == WARM:
                before = handles(), threading.active_count(), held_bytes()
            if i % 50 == 0:
                print(i, handles(), threading.active_count(), held_bytes())
        context.close()
        assert handles() <= before[0] + 5
        assert threading.active_count() <= before[1] + 2
        assert held_bytes() <= before[2] + GROWTH_BYTES * (PAGES - WARM) + 2**22


def held_bytes() -> int:
    """What this process, with the server in it, holds of memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def handles() -> int:
    return len(os.listdir("/proc/self/fd"))
