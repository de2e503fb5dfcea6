"""A site with the studio on it, its ledger in a temporary folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from serve.conftest import Site, build_site
from timechat.ledger.database import open_ledger
from timechat.serve.keys import Keys
from timechat.serve.studio.mount import mount_studio


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
