"""What one caller may take: places, time, the event loop; and what a full server says."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import httpx
import pytest
from conftest import build_tokenizer, longest_hold

from serve.conftest import build_site, says
from timechat.engine.fake import FakeEngine
from timechat.engine.protocol import SchemaError
from timechat.engine.scribe import ThreadScribe
from timechat.model.render import Renderer
from timechat.serve.keys import Caller, Keys
from timechat.serve.rate import Rate
from timechat.serve.settings import Limits, Settings

BODY: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}
CHAT = "/v1/chat/completions"
JSON = {"content-type": "application/json"}


class StuckScribe(ThreadScribe):
    """Renders when it is told to."""

    def __init__(self) -> None:
        super().__init__(Renderer(build_tokenizer()))
        self.asked = 0
        self.go = asyncio.Event()

    async def prompt(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]
    ) -> list[int]:
        self.asked += 1
        await self.go.wait()
        return await super().prompt(messages, tools)


def test_a_full_server_refuses_before_it_reads_what_is_asked() -> None:
    site = build_site(FakeEngine(says("ok")), waiting=3)

    async def crowd(client: httpx.AsyncClient) -> None:
        scribe = StuckScribe()
        site.responder.scribe = scribe
        running = [asyncio.create_task(client.post(CHAT, json=BODY)) for _ in range(4)]
        while scribe.asked < 4:
            await asyncio.sleep(0.001)
        spent: list[float] = []
        for _ in range(5):
            started = time.process_time()
            refused = await client.post(CHAT, json=BODY)
            spent.append(time.process_time() - started)
            assert (refused.status_code, refused.headers["Retry-After"]) == (429, "1")
        # Within 50 ms of this process's own time: others on the machine do not count.
        assert min(spent) < 0.05
        assert scribe.asked == 4
        scribe.go.set()
        assert [(await one).status_code for one in running] == [200] * 4

    site.run(crowd)


def test_each_choice_of_an_answer_counts_for_its_key() -> None:
    limits = Limits(per_key=3)
    site = build_site(FakeEngine(says("x" * 500), interval_s=0.01), Settings(limits=limits))

    async def ask(client: httpx.AsyncClient) -> None:
        refused = await client.post(CHAT, json={**BODY, "n": 4})
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == "n"
        first = asyncio.create_task(client.post(CHAT, json={**BODY, "n": 2, "max_tokens": 20}))
        while site.engine.running < 2:
            await asyncio.sleep(0.005)
        assert (await client.post(CHAT, json={**BODY, "n": 2})).status_code == 429
        assert (await client.post(CHAT, json={**BODY, "max_tokens": 2})).status_code == 200
        assert (await first).status_code == 200

    site.run(ask)
    assert not site.app.state.running


@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_that_takes_too_long_is_ended(stream: bool) -> None:
    engine = FakeEngine(says("x" * 4000), interval_s=0.05)
    site = build_site(engine, Settings(limits=Limits(seconds=0.3)))
    response = site.chat(stream=stream)
    assert response.status_code == (200 if stream else 503)
    last = response.text.strip().rpartition("data: ")[2]
    assert json.loads(last)["error"]["code"] == "timeout"
    assert len(engine.cancelled) == 1


def test_an_answer_longer_than_the_server_gives_is_refused_by_name() -> None:
    site = build_site(settings=Settings(limits=Limits(answer_tokens=10)))
    for name in ("max_tokens", "max_completion_tokens"):
        error = site.chat(**{name: 11}).json()["error"]
        assert (error["param"], error["type"]) == (name, "invalid_request_error")


def test_a_schema_beyond_its_bounds_is_refused() -> None:
    site = build_site()

    def asked(schema: Any) -> httpx.Response:
        named = {"name": "s", "schema": schema}
        return site.chat(response_format={"type": "json_schema", "json_schema": named})

    deep: Any = {"type": "string"}
    for _ in range(30):
        deep = {"type": "object", "properties": {"a": deep}}
    wide = {"enum": [f"word {n}" for n in range(9000)]}
    for schema in (deep, wide, [], "x", None):
        response = asked(schema)
        assert response.status_code == 400, schema
        assert response.json()["error"]["param"] == "response_format.json_schema.schema"
    assert asked({"type": "string"}).status_code == 200
    assert site.engine.requests[-1].schema == '{"type": "string"}'


@pytest.mark.parametrize("size", [1_000_000, 4_000_000, 5_000_000])
def test_a_prompt_of_megabytes_holds_the_event_loop_for_no_more_than_50_ms(size: int) -> None:
    site = build_site()
    asked = {**BODY, "messages": [{"role": "user", "content": "word " * (size // 5)}]}
    body = json.dumps(asked).encode()

    async def ask(client: httpx.AsyncClient) -> None:
        worst: list[float] = []
        for _ in range(3):  # a neighbour may spoil one
            probe = asyncio.create_task(longest_hold())
            await asyncio.sleep(0.02)
            response = await client.post(CHAT, content=body, headers=JSON)
            assert response.status_code == (413 if len(body) > 4 << 20 else 400)
            probe.cancel()
            worst.append(await probe)
        assert min(worst) < 0.05

    site.run(ask)
    assert not site.engine.requests


def test_tools_nested_beyond_reason_are_a_bad_request() -> None:
    for depth in (200, 900, 5000):
        body = json.dumps(BODY)[:-1] + ',"tools":[{"a":' + "[" * depth + "]" * depth + "}]}"
        response = build_site().ask("POST", CHAT, content=body.encode(), headers=JSON)
        assert response.status_code == 400, (depth, response.text)


def test_a_schema_that_cannot_be_held_is_a_bad_request_before_anything_is_computed() -> None:
    site = build_site()

    class Refusing:
        async def check(self, schema: str) -> None:
            raise SchemaError(f"no: {schema}")

        async def stop(self) -> None: ...

    site.responder.grammar = Refusing()
    named = {"name": "s", "schema": {"type": "string"}}
    asked = {"type": "json_schema", "json_schema": named}
    for stream in (False, True):
        response = site.chat(response_format=asked, stream=stream)
        assert response.status_code == 400
        assert response.json()["error"] == {
            "message": 'no: {"type": "string"}',
            "type": "invalid_request_error",
            "param": "response_format.json_schema.schema",
            "code": "unsupported_value",
        }
    assert not site.engine.requests
    assert site.chat().status_code == 200


SCHEMA = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "string"}}}
AT_FAULT = {
    "message": "as scripted",
    "type": "invalid_request_error",
    "param": "response_format.json_schema.schema",
    "code": "unsupported_value",
}


@pytest.mark.parametrize("stream", [False, True])
def test_a_schema_that_the_engine_finds_wanting_at_its_first_word_is_a_bad_request(
    stream: bool,
) -> None:
    site = build_site(FakeEngine(says("ok"), fails_after=0, misfit=True))
    response = site.chat(response_format=SCHEMA, stream=stream)
    assert (response.status_code, response.json()["error"]) == (400, AT_FAULT)
    assert 'ending="refused"' in site.ask("GET", "/metrics").text
    failed = site.chat()  # without a schema it is the engine that fails
    assert failed.status_code == 503


def test_a_schema_that_breaks_off_a_stream_is_named_in_its_last_event() -> None:
    site = build_site(FakeEngine(says("okay"), fails_after=2, misfit=True))
    assert site.chat(response_format=SCHEMA).json()["error"] == AT_FAULT
    *_, last = site.chat(response_format=SCHEMA, stream=True).text.strip().split("\n\n")
    assert json.loads(last.removeprefix("data: "))["error"] == AT_FAULT


def test_a_keys_requests_fill_up_again_steadily() -> None:
    now = 100.0
    rate = Rate(6, clock=lambda: now)
    one, other = Caller("p", "one"), Caller("p", "other")
    assert [rate.take(one) for _ in range(7)] == [0.0] * 6 + [10.0]
    assert rate.take(other) == 0.0
    now += 4.0
    assert rate.take(one) == pytest.approx(6.0)
    now += 6.0
    assert [rate.take(one), rate.take(one)] == [0.0, pytest.approx(10.0)]
    now += 3600.0  # an hour's rest is worth a minute's requests, not an hour's
    assert [rate.take(one) for _ in range(7)] == [0.0] * 6 + [10.0]
    assert not any(Rate(None).take(one) for _ in range(1000))


def test_a_key_that_asks_too_often_is_told_when_to_come_again() -> None:
    keys = Keys(["a", "b"])
    settings = Settings(limits=Limits(requests_per_minute=2))
    site = build_site(FakeEngine(says("ok")), settings, keys)

    def status(key: str, path: str = "/v1/models") -> int:
        headers = {"authorization": f"Bearer {key}"}
        return site.ask("GET", path, headers=headers).status_code

    assert [status("a") for _ in range(3)] == [200, 200, 429]
    asked = {"json": BODY, "headers": {"authorization": "Bearer a"}}
    response = site.ask("POST", CHAT, **asked)
    assert response.status_code == 429
    error = response.json()["error"]
    assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    assert 1 <= int(response.headers["retry-after"]) <= 30
    assert response.headers["x-should-retry"] == "true"
    assert not site.engine.requests
    assert status("b") == 200
    assert status("wrong") == 401
    assert {status("a", path) for path in ("/metrics", "/ready", "/health")} == {200}
