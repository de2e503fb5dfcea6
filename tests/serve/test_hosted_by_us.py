"""A model that answers elsewhere, where elsewhere is our own server: the wire format, both ways."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from contextlib import aclosing
from typing import Any

import httpx
import pytest
from click.testing import CliRunner
from engine.test_calls import ONE, TOOL

from serve.conftest import ANSWER, Site, build_site, listening, says
from serve.test_tools import calling
from timechat.cli.main import cli
from timechat.engine.fake import FakeEngine
from timechat.engine.hosted import HostedResponder
from timechat.engine.responder import Ask, Responder
from timechat.serve.keys import Keys
from timechat.serve.registry import Served
from timechat.stages.serving.serve import find_models, open_model


class Relay(Site):
    """A site whose one model, `tiny`, answers at an address."""

    def __init__(self, address: str) -> None:
        plain = build_site()
        self.engine, self.app, self.registry = plain.engine, plain.app, plain.registry
        (found,) = find_models([f"{address}/v1#tiny"], lambda _: None)
        assert (found.name, found.digest, found.run) == ("tiny", "", None)
        self.responder: Responder = open_model(found)  # type: ignore[assignment]

    async def open(self) -> None:
        await self.registry.add(Served("tiny", self.responder))

    def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        """As on any site; what the answer went through is closed on the loop it was opened on."""

        async def call() -> httpx.Response:
            await self.open()
            async with self.client() as client:
                response = await client.request(method, path, **options)
            await self.responder.stop()
            return response

        return asyncio.run(call())


@pytest.fixture
def behind() -> Iterator[tuple[Site, str]]:
    site = build_site(FakeEngine(says(ANSWER), window=300))
    with listening(site) as address:
        yield site, address


def test_an_answer_passes_through_whole_streamed_and_with_its_figures(
    behind: tuple[Site, str],
) -> None:
    site, address = behind
    asked: dict[str, Any] = {"logprobs": True, "top_logprobs": 2, "seed": 5, "temperature": 0.5}
    direct, relayed = site.chat(**asked).json(), Relay(address).chat(**asked).json()
    assert relayed["choices"] == direct["choices"]
    assert relayed["usage"] == direct["usage"]
    assert relayed["system_fingerprint"] is None
    assert site.engine.requests[0] == site.engine.requests[1]
    streamed = Relay(address).chat(stream=True).text
    assert streamed.endswith("data: [DONE]\n\n")


def test_bare_text_passes_through(behind: tuple[Site, str]) -> None:
    body = {"model": "tiny", "prompt": "abc"}
    answer = Relay(behind[1]).ask("POST", "/v1/completions", json=body).json()
    assert answer["choices"][0]["text"] == ANSWER.encode()[:16].decode(errors="replace")
    assert answer["usage"]["prompt_tokens"] == 3


def test_tool_calls_pass_through() -> None:
    with listening(calling(ONE)) as address:
        (choice,) = Relay(address).chat(tools=[TOOL]).json()["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["tool_calls"][0]["function"]["name"] == "look"


def test_refusals_keep_their_meaning(behind: tuple[Site, str]) -> None:
    long = [{"role": "user", "content": "x" * 400}]
    refused = Relay(behind[1]).chat(messages=long)
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "context_length_exceeded"
    shortened = [*long, {"role": "assistant", "content": "y"}, {"role": "user", "content": "z"}]
    answer = Relay(behind[1]).chat(messages=shortened, truncation="auto").json()
    assert answer["notice"] == "2 oldest messages left out"


def test_what_the_relay_is_like_is_told_in_its_list(behind: tuple[Site, str]) -> None:
    row = Relay(behind[1]).ask("GET", "/v1/models/tiny").json()
    assert (row["engine"], row["context_length"]) == ("hosted", 300)
    assert "digest" not in row


def test_closing_the_relay_frees_the_engine_behind_it() -> None:
    site = build_site(FakeEngine(says("x" * 4000), interval_s=0.005))
    with listening(site) as address:

        async def stop_early() -> None:
            responder = HostedResponder(f"{address}/v1", "tiny")
            await responder.start()
            ask = Ask([{"role": "user", "content": "Hi"}])
            async with aclosing(responder.reply(ask)) as pieces:
                async for piece in pieces:
                    if piece.text:
                        break
            await responder.stop()

        asyncio.run(stop_early())
        deadline = time.monotonic() + 10
        while not site.engine.cancelled:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_the_terminal_talks_to_an_address(
    behind: tuple[Site, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TIMECHAT_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    words = ["chat", f"{behind[1]}/v1#tiny", "--prompt", "Hi", "--json"]
    done = CliRunner().invoke(cli, words)
    assert done.exception is None
    assert json.loads(done.stdout) == {"answer": ANSWER, "ending": "stop"}


def test_a_key_comes_from_the_environment_and_is_named_where_it_is_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    site = build_site(keys=Keys(["secret"]))
    with listening(site) as address:
        words = ["chat", f"{address}#tiny", "--prompt", "Hi"]
        monkeypatch.setenv("TIMECHAT_API_KEY", "secret")
        assert ANSWER in CliRunner().invoke(cli, words).stdout
        monkeypatch.setenv("TIMECHAT_API_KEY", "wrong")
        done = CliRunner().invoke(cli, words)
        assert "refuses the key" in str(done.exception or done.output)
        assert httpx.get(f"{address}/health").status_code == 200
