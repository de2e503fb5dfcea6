"""A real browser for the tests: Debian's Chromium, driven by Playwright.

The fixtures that open it are in conftest; this is what the tests say to it.
"""

from __future__ import annotations

import shutil

import pytest

api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
BROWSER = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium"),
]
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync")


def watch(page: api.Page, faults: list[str]) -> None:
    """Put down a script's error, and any request that does not go to this machine."""
    page.set_default_timeout(60_000)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("request", lambda r: is_foreign(r.url) and faults.append(f"asked {r.url}"))


def is_foreign(address: str) -> bool:
    return not address.startswith(("http://127.0.0.1:", "data:", "blob:", "about:"))


def send(page: api.Page, words: str) -> None:
    page.wait_for_load_state()  # before its scripts run, Enter is only a new line
    page.get_by_label("Message").fill(words)
    page.keyboard.press("Enter")
