"""What docs/security.md promises of serving, where no other file holds it, and the page itself."""

from __future__ import annotations

import inspect
import logging
import re
import stat
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from harness import write_recipe

from serve.conftest import build_site
from timechat.ledger.database import default_ledger
from timechat.serve import keys as keys_of
from timechat.serve.keys import Keys
from timechat.serve.wire import ChatRequest, CompletionRequest

ROOT = Path(__file__).parents[2]
CHAT = "/v1/chat/completions"


def test_every_test_that_the_page_names_is_there() -> None:
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs/security.md").read_text("utf-8")))
    code = "".join(path.read_text("utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    assert len(named) > 40
    assert not {name for name in named if f"def {name}(" not in code}


def test_keys_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bytes] = []

    def compare(left: bytes, right: bytes) -> bool:
        seen.append(left)
        return left == right

    monkeypatch.setattr(keys_of.hmac, "compare_digest", compare)
    keys = Keys(["one", "two", "three"])
    for offered in ("one", "two", "three", "nobody"):
        seen.clear()
        assert (keys.find(offered) is None) == (offered == "nobody")
        assert len(seen) == 3, "how many were looked at tells which one it was"


@pytest.mark.parametrize(
    "headers",
    [
        {"x-api-key": "k"},
        {"api-key": "k"},
        {"authorization": "k"},
        {"authorization": "Basic k"},
        {"authorization": "Token k"},
        {"authorization": "Bearer k k"},
        {"authorization": "Bearer K"},
        {"proxy-authorization": "Bearer k"},
        {"x-forwarded-for": "127.0.0.1"},
        {"x-forwarded-user": "admin"},
        {"cookie": "key=k"},
        {"authorization": "Basic x", "cookie": "timechat_key=k"},
    ],
)
def test_no_other_form_of_a_credential_opens_anything(headers: dict[str, str]) -> None:
    site = build_site(keys=Keys(["k"]))
    assert site.ask("GET", "/v1/models", headers=headers).status_code == 401
    assert site.ask("GET", "/v1/models?api_key=k&key=k", headers=headers).status_code == 401


def test_the_client_hands_the_template_nothing() -> None:
    site = build_site()
    plain = site.chat()
    kwargs = {"chat_template_kwargs": {"messages": [], "enable_thinking": True}}
    given = site.chat(**kwargs, chat_template="{{ 7 * 7 }}", add_generation_prompt=False)
    assert given.headers["x-ignored-fields"] == (
        "add_generation_prompt, chat_template, chat_template_kwargs"
    )
    assert given.json()["choices"] == plain.json()["choices"]
    first, second = site.engine.requests
    assert first.prompt == second.prompt


def test_every_number_of_a_request_has_bounds() -> None:
    """Out of the fields themselves, so that a new one cannot forget its own."""
    own: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}], "prompt": "x"}
    for path, kind in ((CHAT, ChatRequest), ("/v1/completions", CompletionRequest)):
        numbers = [
            name
            for name, field in kind.model_fields.items()
            if re.search(r"\b(int|float)\b", str(field.annotation)) and name not in own
        ]
        assert "n" in numbers
        for name in numbers:
            if name == "logit_bias":
                continue  # refused whole
            for value in (-(10**30), 10**30):
                body = {"model": "tiny", **own, name: value}
                response = build_site().ask("POST", path, json=body)
                assert response.status_code == 400, (name, value)
                assert response.json()["error"]["param"] == name


def test_no_address_in_a_message_or_a_schema_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(*_: object, **__: object) -> None:
        raise AssertionError("something was fetched")

    monkeypatch.setattr("socket.create_connection", connect)
    monkeypatch.setattr("asyncio.base_events.BaseEventLoop.create_connection", connect)
    for part in (
        {"type": "image_url", "image_url": {"url": "http://169.254.169.254/latest/meta-data"}},
        {"type": "input_audio", "input_audio": {"url": "file:///etc/passwd"}},
        {"type": "file", "file": {"file_url": "http://evil.example"}},
    ):
        response = build_site().chat(messages=[{"role": "user", "content": [part]}])
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "messages[0].content"


def test_nothing_that_was_said_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    secret = "the-code-is-4711\r\nERROR forged line"
    with caplog.at_level(logging.DEBUG):
        site = build_site()
        site.chat(messages=[{"role": "user", "content": secret}])
        site.chat(model=secret)
        site.ask("POST", CHAT, content=secret.encode())
        site.ask("GET", "/v1/models/the-code-is-4711")
    ours = [r.getMessage() for r in caplog.records if not r.name.startswith(("httpx", "httpcore"))]
    assert not [line for line in ours if "4711" in line or "forged" in line]


def test_no_page_holds_a_key() -> None:
    pages = Path(inspect.getfile(keys_of)).parent / "studio" / "static"
    site = build_site(keys=Keys(["sk-secret-of-mine"]))
    for path in ("/", "/sign-in", "/health", "/openapi.json"):
        for headers in ({}, {"accept": "text/html"}, {"authorization": "Bearer sk-secret-of-mine"}):
            response = site.ask("GET", path, headers=headers)
            assert "sk-secret-of-mine" not in response.text + str(response.headers)
    assert not [p for p in pages.iterdir() if "sk-" in p.read_text("utf-8")]


def test_the_folder_of_the_ledger_is_this_users_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIMECHAT_DATA", str(tmp_path / "data"))
    folder = default_ledger().parent
    assert stat.S_IMODE(folder.stat().st_mode) & 0o077 == 0


@pytest.mark.slow
def test_only_the_port_of_the_api_listens_and_on_loopback(tmp_path: Path) -> None:
    """The server, its engine, its renderer and its worker of fine-tuning jobs, by their sockets."""
    write_recipe(tmp_path)
    words = ["serve", str(tmp_path / "base"), "--port", "0", "--state", str(tmp_path / "state")]
    log = tmp_path / "log"
    with log.open("wb") as file:
        server = subprocess.Popen(
            [sys.executable, "-m", "timechat", *words], stdout=file, stderr=file
        )
    try:
        address = _address(server, log)
        family = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
        assert len(family) >= 3, "an engine and a renderer at least"
        sockets = {
            (one.laddr.ip, one.laddr.port): (process.pid, one.status)
            for process in family
            for one in process.net_connections("inet")
            if one.status in (psutil.CONN_LISTEN, psutil.CONN_NONE)
        }
        assert set(sockets) == {("127.0.0.1", address.port)}, sockets
    finally:
        server.terminate()
        server.wait(120)


def _address(server: subprocess.Popen[bytes], log: Path) -> httpx.URL:
    """Where the server answers, once all of it is ready."""
    for _ in range(3000):
        assert server.poll() is None, log.read_text()
        if found := re.search(r"listening on (http://[\d.]+:\d+)", log.read_text()):
            with suppress(httpx.TransportError):
                if httpx.get(f"{found[1]}/ready").status_code == 200:
                    return httpx.URL(found[1])
        with suppress(subprocess.TimeoutExpired):
            server.wait(0.1)
    raise AssertionError(log.read_text())
