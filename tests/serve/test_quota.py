"""What a project may keep on the server's disk: files, uploads on their way, conversations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve.tuning_site import TuningSite
from timechat.ledger import chats
from timechat.ledger.files import Files

ROW = b'{"messages": []}\n'
ALPHA, BETA = ({"authorization": f"Bearer key-{name}"} for name in "ab")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[TuningSite]:
    """A server on which a project may keep the bytes of ten rows."""
    site = TuningSite(tmp_path, tmp_path / "ledger.db", ())
    small: Files = replace(site.tuning.files, most_bytes=10 * len(ROW))
    site.tuning.files = site.app.state.files = small
    yield site
    site.ledger.engine.dispose()


def send(site: TuningSite, rows: int, headers: dict[str, str] = ALPHA) -> httpx.Response:
    form: Any = {"files": {"file": ("f.jsonl", ROW * rows)}, "data": {"purpose": "fine-tune"}}
    return site.ask("POST", "/v1/files", headers=headers, **form)


def announce(site: TuningSite, rows: int) -> httpx.Response:
    body = {"filename": "f", "bytes": rows * len(ROW), "mime_type": "x", "purpose": "fine-tune"}
    return site.ask("POST", "/v1/uploads", json=body, headers=ALPHA)


def refused(response: httpx.Response) -> str:
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["code"] == "storage_limit_exceeded"
    return error["message"]


def test_a_project_that_has_filled_its_room_is_told_the_figures(site: TuningSite) -> None:
    kept = send(site, 7)
    assert kept.status_code == 200
    assert refused(send(site, 4)) == (
        "the files and uploads of this project take 119 bytes of 170, and this would be 68 more:"
        " delete some first"
    )
    assert [path.name for path in site.tuning.files.folder.iterdir()] == [
        f"{kept.json()['id']}.jsonl"
    ]
    assert send(site, 4, BETA).status_code == 200, "another project has room of its own"
    gone = site.ask("DELETE", f"/v1/files/{kept.json()['id']}", headers=ALPHA)
    assert gone.status_code == 200
    assert send(site, 10).status_code == 200


def test_what_is_announced_of_an_upload_is_set_aside_until_it_ends(site: TuningSite) -> None:
    first = announce(site, 6)
    assert first.status_code == 200
    assert "take 102 bytes" in refused(announce(site, 5))
    refused(send(site, 5))
    made = f"/v1/uploads/{first.json()['id']}"
    part = site.ask("POST", f"{made}/parts", files={"data": ROW * 6}, headers=ALPHA)
    assert part.status_code == 200
    whole = {"part_ids": [part.json()["id"]]}
    # It takes its own place: there is no room for it twice.
    assert site.ask("POST", f"{made}/complete", json=whole, headers=ALPHA).status_code == 200
    second = announce(site, 4)
    refused(send(site, 1))
    site.ask("POST", f"/v1/uploads/{second.json()['id']}/cancel", headers=ALPHA)
    assert send(site, 4).status_code == 200


def test_one_conversation_too_many_is_refused_and_those_kept_can_go_on(
    site: TuningSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chats, "MAX_KEPT", 2)

    def keep(name: str, headers: dict[str, str] = ALPHA) -> int:
        body = {"turns": [{"role": "user", "content": "Hi"}]}
        path = f"/studio/conversations/{name}"
        return site.ask("PUT", path, json=body, headers=headers).status_code

    assert [keep(name) for name in ("c1", "c2", "c3", "c1")] == [204, 204, 400, 204]
    assert keep("c3", BETA) == 204
    assert site.ask("DELETE", "/studio/conversations/c2", headers=ALPHA).status_code == 204
    assert keep("c3") == 204
