"""A site with the studio on it, its ledger in a temporary folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from serve.conftest import Site, build_site
from timechat.ledger.database import open_ledger
from timechat.serve.keys import Keys
from timechat.serve.studio.mount import mount_studio

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


@pytest.fixture
def studio(tmp_path: Path) -> Site:
    return with_studio(build_site(), tmp_path)


@pytest.fixture
def locked(tmp_path: Path) -> Site:
    """The same, where a key is needed."""
    return with_studio(build_site(keys=Keys(["sk-right"])), tmp_path)


@pytest.fixture(autouse=True)
def no_child_is_left() -> Iterator[None]:
    """Every lesson that a test began ends with it."""
    yield
    from serve.studio.story import BEGUN

    while BEGUN:
        BEGUN.pop().close()


def with_studio(site: Site, folder: Path) -> Site:
    mount_studio(site.app, open_ledger(folder / "ledger.db"))
    return site


@pytest.fixture(scope="module")  # for a session it would keep an event loop running under all tests
def browser() -> Iterator[Browser]:
    from serve.studio.chromium import CHROMIUM, FLAGS, api

    api.expect.set_options(timeout=60_000)
    with api.sync_playwright() as play:
        opened = play.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page on which a script's error, a refused policy or a foreign request is a failure."""
    from serve.studio.chromium import watch

    context = browser.new_context(viewport={"width": 1200, "height": 800})
    faults: list[str] = []
    context.on("page", lambda opened: watch(opened, faults))
    yield context.new_page()
    context.close()
    assert faults == []
