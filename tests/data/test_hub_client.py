"""The Hub's real client against a small hub of our own: what it asks, fetches and keeps."""

from __future__ import annotations

import gzip
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub.constants as constants
import huggingface_hub.utils as hub_utils
import pytest

from timechat.conversation import Conversation
from timechat.data.sources import open_sources
from timechat.errors import FetchError
from timechat.recipe import Data

REVISION = "0123456789abcdef0123456789abcdef01234567"
CARD = {
    "configs": [
        {"config_name": "en", "data_files": [{"split": "train", "path": "en/train*"},
                                             {"split": "test", "path": "en/test*"}]},
        {"config_name": "de", "data_files": "de/*"},
    ]
}  # fmt: skip


def line(question: str) -> bytes:
    return json.dumps({"question": question, "answer": "yes"}).encode() + b"\n"


FILES = {
    "README.md": b"---\nlicense: mit\n---\n",
    "faq.py": b"raise SystemExit('a script was run')\n",
    "en/train-00000.jsonl": line("a") + line("b"),
    "en/test.jsonl.gz": gzip.compress(line("c")),
    "de/train.jsonl": line("d"),
}


class _Hub(BaseHTTPRequestHandler):
    """The three questions that the client asks of a hub: what is there, its files, their bytes."""

    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        path = self.path.partition("?")[0]
        if path in ("/api/datasets/acme/faq", "/api/datasets/acme/faq/revision/v2"):
            self._json({"id": "acme/faq", "sha": REVISION, "cardData": CARD, "private": False,
                        "siblings": [{"rfilename": name} for name in FILES]})  # fmt: skip
        elif path == f"/api/datasets/acme/faq/tree/{REVISION}":
            self._json(
                [
                    {"type": "file", "path": name, "size": len(content), "oid": _oid(content)}
                    for name, content in FILES.items()
                ]
            )
        elif (name := self._named()) is not None:
            self._send(200, FILES[name], ETag=f'"{_oid(FILES[name])}"')
        elif "secret" in path:
            self._send(401, b'{"error": "Invalid username or password."}')
        else:
            self._send(
                404, b'{"error": "Repository not found"}', **{"X-Error-Code": "RepoNotFound"}
            )

    do_HEAD = do_GET  # noqa: N815 (the name that http.server calls)

    def _named(self) -> str | None:
        name = self.path.removeprefix(f"/datasets/acme/faq/resolve/{REVISION}/")
        return name if name in FILES else None

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), **{"Content-Type": "application/json"})

    def _send(self, status: int, content: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {**headers, "X-Repo-Commit": REVISION}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


def _oid(content: bytes) -> str:
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A hub on this machine that the client is pointed at; gives the paths that it was asked."""
    _Hub.asked = []
    with ThreadingHTTPServer(("127.0.0.1", 0), _Hub) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        hub_utils.disable_progress_bars()
        yield _Hub.asked
        hub_utils.enable_progress_bars()
        server.shutdown()


def said(name: str) -> dict[str | None, list[str]]:
    found: dict[str | None, list[str]] = {}
    for source in open_sources([name], Data()):
        for row in source.rows():
            assert isinstance(row.found, Conversation)
            found.setdefault(source.split, []).append(row.found.messages[0].content)
    return found


def test_the_files_of_one_configuration_come_over_http_and_keep_their_splits(
    asked: list[str], tmp_path: Path
) -> None:
    assert said("acme/faq:en@v2") == {"train": ["a", "b"], "test": ["c"]}
    assert "/api/datasets/acme/faq/revision/v2" in [path.partition("?")[0] for path in asked]
    fetched = {path for path in asked if "/resolve/" in path}
    assert fetched == {
        f"/datasets/acme/faq/resolve/{REVISION}/en/train-00000.jsonl",
        f"/datasets/acme/faq/resolve/{REVISION}/en/test.jsonl.gz",
    }
    asked.clear()
    assert said("acme/faq:en@v2") == {"train": ["a", "b"], "test": ["c"]}
    assert not [path for path in asked if "/resolve/" in path], "what is in the cache came again"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("acme/none", "Repository Not Found"),
        ("acme/secret", "401"),
        ("acme/faq:fr", "no configuration 'fr'; it has de, en"),
        ("acme/faq", "several configurations: name one as acme/faq:NAME"),
        ("acme/b--d", "Cannot have -- or .. in repo_id"),
    ],
)
def test_what_a_hub_refuses_is_one_error_of_one_line(
    asked: list[str], name: str, expected: str
) -> None:
    with pytest.raises(FetchError) as caught:
        open_sources([name], Data())
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_hub_that_cannot_be_reached_is_one_error(
    asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(FetchError, match="no file or folder at acme/faq, and the Hub"):
        open_sources(["acme/faq"], Data())
