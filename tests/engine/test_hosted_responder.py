"""Endpoints elsewhere, on the seam of local models: what they send, and what they should not."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

import httpx
import pytest

from timechat.engine.admission import BusyError
from timechat.engine.calls import Call
from timechat.engine.hosted import MAX_LINE, HostedResponder
from timechat.engine.protocol import Ending, EngineError, Sampling
from timechat.engine.responder import Ask, ContextTooLongError, Piece, UnsupportedError
from timechat.errors import ModelError, UserError

ASK = Ask([{"role": "user", "content": "Hi"}], max_new_tokens=9)
LISTED = {"data": [{"id": "small", "max_model_len": 2048}]}
Handler = Callable[[httpx.Request], httpx.Response]


def stream(*rows: Any, done: bool = True) -> Handler:
    """An endpoint that answers with these events."""
    data = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    text = "".join(f"data: {row}\n\n" for row in [*data, *(["[DONE]"] if done else [])])
    return lambda _: httpx.Response(200, text=text)


def part(text: str | None = None, finish: str | None = None, **more: Any) -> dict[str, Any]:
    delta = {"content": text, **more}
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


def answer(handler: Handler, ask: Ask = ASK) -> list[Piece]:
    async def talk() -> list[Piece]:
        def route(request: httpx.Request) -> httpx.Response:
            listing = request.url.path == "/v1/models"
            return httpx.Response(200, json=LISTED) if listing else handler(request)

        responder = HostedResponder("http://h/v1", "small", "k", httpx.MockTransport(route))
        await responder.start()
        assert responder.capabilities.window == 2048
        try:
            async with aclosing(responder.reply(ask)) as pieces:
                return [piece async for piece in pieces]
        finally:
            await responder.stop()

    return asyncio.run(talk())


def test_an_answer_streams_with_its_usage_and_ending() -> None:
    usage = {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 2}}
    first, *rest, last = answer(stream(part("", role="assistant"), part("He"), part("y"),
                                       part(None, "length"), usage))  # fmt: skip
    assert first == Piece()
    assert [piece.text for piece in rest] == ["He", "y"]
    assert (last.ending, last.usage.prompt, last.usage.completion) == (Ending.LENGTH, 7, 2)


def test_an_error_in_a_stream_that_blames_the_request_is_a_refusal_here_too() -> None:
    error = {"message": "no", "type": "invalid_request_error", "param": "response_format"}
    with pytest.raises(UnsupportedError, match="no") as refused:
        answer(stream(part("{"), {"error": error}, done=False))
    assert refused.value.param == "response_format"
    *_, last = answer(stream(part("{"), {"error": {**error, "type": "overloaded"}}, done=False))
    assert (last.ending, last.detail) == (Ending.FAILED, "no")


def test_vllms_usage_in_every_event_and_llamas_timings_are_understood() -> None:
    usage = {"prompt_tokens": 1, "completion_tokens": 1}
    rows = [{**part("a", reasoning_content=None), "usage": usage}, {**part(None, "stop"),
            "timings": {"predicted_n": 1}, "usage": usage}]  # fmt: skip
    *_, last = answer(stream(*rows))
    assert (last.ending, last.usage.completion) == (Ending.STOP, 1)


def test_calls_that_come_in_parts_are_put_together() -> None:
    def call(index: int, **function: str) -> dict[str, Any]:
        return part(None, tool_calls=[{"index": index, "function": function}])

    *_, last = answer(stream(call(0, name="f", arguments=""), call(0, arguments='{"a"'),
                             call(0, arguments=": 1}"), call(1, name="g", arguments="{}"),
                             part(None, "tool_calls")))  # fmt: skip
    assert last.calls == (Call("f", '{"a": 1}'), Call("g", "{}"))


def test_what_was_asked_for_is_sent_and_nothing_else() -> None:
    seen: list[dict[str, Any]] = []

    def handler(request: httpx.Request) -> httpx.Response:
        assert request.headers["authorization"] == "Bearer k"
        seen.append(json.loads(request.content))
        return stream(part("ok", "stop"))(request)

    answer(handler)
    assert seen[0] == {
        "model": "small", "stream": True, "stream_options": {"include_usage": True},
        "temperature": 0.0, "seed": 0, "messages": list(ASK.messages), "max_tokens": 9,
    }  # fmt: skip
    full = Ask(ASK.messages, sampling=Sampling(0.5, 0.9, 3, presence_penalty=1.0), stop=("x",),
               schema='{"type": "string"}', logprobs=2)  # fmt: skip
    answer(handler, full)
    assert seen[1]["response_format"]["json_schema"]["schema"] == {"type": "string"}
    assert (seen[1]["top_p"], seen[1]["stop"], seen[1]["top_logprobs"]) == (0.9, ["x"], 2)


@pytest.mark.parametrize(
    ("status", "body", "error", "match"),
    [
        (400, {"code": "context_length_exceeded"}, ContextTooLongError, "too long"),
        (400, {"param": "stop"}, UnsupportedError, "too long"),
        (401, {}, UserError, "says 401"),
        (302, {}, UserError, "says 302"),
        (429, {}, BusyError, "try again in 7 s"),
        (500, {}, EngineError, "says 500"),
    ],
)
def test_a_refusal_means_what_it_means_here(
    status: int, body: dict[str, Any], error: type[Exception], match: str
) -> None:
    row = {"error": {"message": "too long", **body}}
    with pytest.raises(error, match=match):
        answer(lambda _: httpx.Response(status, json=row, headers={"retry-after": "7"}))


BROKEN: dict[str, tuple[Handler, str]] = {
    "no end": (stream(part("a"), done=False), "broke off"),
    "a reason but no end": (stream(part("a", "stop"), done=False), "broke off"),
    "an end but no reason": (stream(part("a")), "broke off"),
    "an error event": (stream(part("a"), {"error": {"message": "out of luck"}}), "out of luck"),
    "no JSON": (stream("{nope"), "no chat completion"),
    "another shape": (stream({"choices": [{"delta": 3}]}), "no chat completion"),
    "a list": (stream([1, 2]), "no chat completion"),
    "endless calls": (stream(part(None, tool_calls=[{"index": 10**9}])), "no chat completion"),
    "an endless event": (stream("x" * (MAX_LINE + 9)), "no chat completion"),
    "no text": (lambda _: httpx.Response(200, content=b"data: \xff\n\n"), "no chat completion"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_what_breaks_off_or_is_no_answer_ends_failed_and_says_why(name: str) -> None:
    handler, why = BROKEN[name]
    last = answer(handler)[-1]
    assert last.ending is Ending.FAILED
    assert why in last.detail


@pytest.mark.parametrize(
    ("listed", "match"),
    [
        (httpx.Response(200, json={"data": [{"id": "smal"}]}), "no model 'small'.*smal"),
        (httpx.Response(401), "TIMECHAT_API_KEY"),
        (httpx.ConnectError("refused"), "nothing answers at http://h/v1"),
    ],
)
def test_an_endpoint_that_cannot_answer_is_refused_at_the_start(listed: Any, match: str) -> None:
    def handler(_: httpx.Request) -> httpx.Response:
        if isinstance(listed, Exception):
            raise listed
        return listed

    async def start() -> None:
        await HostedResponder("http://h/v1", "small", "", httpx.MockTransport(handler)).start()

    with pytest.raises(ModelError, match=match):
        asyncio.run(start())


def test_an_endpoint_without_a_list_is_taken_at_its_word() -> None:
    async def start() -> None:
        transport = httpx.MockTransport(lambda _: httpx.Response(404, text="<html>"))
        responder = HostedResponder("http://h/v1", "small", "", transport)
        await responder.start()
        assert responder.ready
        assert await responder.drain(1.0)
        assert not responder.ready
        await responder.stop()

    asyncio.run(start())
