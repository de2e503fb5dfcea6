"""axe-core's checks of every page, in light and dark, wide and on a phone.

axe-core comes with the package `axe-playwright-python` (the `browser` extra), not with this tree.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import httpx
import pytest

from serve.conftest import Site, listening
from serve.studio.chromium import BROWSER, api, send
from serve.studio.story import RIGHT, build_story
from serve.studio.test_learning import SAID

AXE = find_spec("axe_playwright_python")
pytestmark = [
    *BROWSER,
    pytest.mark.skipif(AXE is None, reason="axe-playwright-python is not installed"),
]
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]


def faults(page: api.Page) -> list[str]:
    assert AXE is not None
    assert AXE.origin is not None
    script = Path(AXE.origin).with_name("axe.min.js").read_text(encoding="utf-8")
    # Put in beside the page's own policy, which would not let it in as a script.
    page.evaluate(script)
    found = page.evaluate("(rules) => axe.run(document, { runOnly: rules })", RULES)
    assert len(found["passes"]) > 10, "axe-core looked at nothing"
    return [
        f"{page.url}: {one['id']} ({one['help']}): {one['nodes'][0]['html'][:120]}"
        for one in found["violations"]
    ]


@pytest.mark.parametrize(("scheme", "width"), [("light", 1200), ("dark", 1200), ("light", 375)])
def test_axe_finds_nothing_to_say(
    tmp_path: Path,
    page: api.Page,
    scheme: str,
    width: int,
) -> None:
    site, _ = build_story(tmp_path, step_s=0.0)
    page.set_viewport_size({"width": width, "height": 800})
    page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    found: list[str] = []
    with listening(site) as address:
        with httpx.Client(base_url=address, timeout=60) as client:
            assert client.post("/studio/corrections", json=SAID).status_code == 201
            client.post("/studio/learn", json={"model": "shop", "action": "start"})
        page.goto(address)
        send(page, f"When do you open? `code` {RIGHT}")
        api.expect(page.locator(".facts")).to_contain_text("first word")
        found += faults(page)
        page.get_by_title("Write a better answer").click()
        found += faults(page)
        page.goto(f"{address}/queue")
        page.get_by_label("Your name").fill("ben")
        page.keyboard.press("Tab")
        api.expect(page.locator("#learning details")).to_be_visible()
        found += faults(page)
        page.goto(f"{address}/runs")
        api.expect(page.get_by_role("heading", name="Six checks")).to_be_visible()
        found += faults(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert found == []


def test_axe_sees_what_is_wrong_with_a_page(studio: Site, page: api.Page) -> None:
    """So that its silence above means something."""
    with listening(studio) as address:
        page.goto(address)
        page.evaluate(
            """() => {
              const faint = document.createElement("p");
              faint.textContent = "hardly to be read";
              faint.style.color = "#bbb";
              document.querySelector("main").append(faint, document.createElement("input"));
            }"""
        )
        said = " ".join(faults(page))
    assert "color-contrast" in said
    assert "label" in said
