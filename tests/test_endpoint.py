"""Bad endpoints: every fault is retried with limits, named, and never taken for an answer."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from timechat.conversation import Message
from timechat.endpoint import Endpoint, Limits, names_another
from timechat.errors import ModelError

ASKED = [Message("user", "Hi")]
QUICK = Limits(attempts=3, seconds=0.2, pause_s=0.0)
ADDRESS = "http://there.test/v1#small"


def completion(text: str = "Hello", model: str = "small") -> dict[str, Any]:
    return {
        "model": model,
        "choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2},
    }


def endpoint(
    handler: Callable[[httpx.Request], httpx.Response], record: Path | None = None, **options: Any
) -> Endpoint:
    return Endpoint(ADDRESS, record, QUICK, transport=httpx.MockTransport(handler), **options)


def test_an_answer_comes_with_its_model_tokens_and_date() -> None:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json=completion())

    reply = endpoint(answer).ask(ASKED, 16)
    assert (reply.text, reply.fault, reply.model) == ("Hello", "", "small")
    assert (reply.prompt_tokens, reply.completion_tokens) == (3, 2)
    assert reply.date
    assert str(seen[0].url) == "http://there.test/v1/chat/completions"
    assert json.loads(seen[0].content)["temperature"] == 0.0


class Endless(httpx.SyncByteStream):
    def __iter__(self) -> Iterator[bytes]:
        while True:
            yield b"x" * 65536


class Dripping(httpx.SyncByteStream):
    """A byte now and then: no single wait is too long, all of them together are."""

    def __iter__(self) -> Iterator[bytes]:
        while True:
            time.sleep(0.02)
            yield b" "


def slow(_: httpx.Request) -> httpx.Response:
    raise httpx.ReadTimeout("slow")


def down(_: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("refused")


FAULTS: list[tuple[str, Callable[[httpx.Request], httpx.Response], int]] = [
    ("ConnectError", down, 3),
    ("no answer within", slow, 3),
    ("no whole answer within", lambda _: httpx.Response(200, stream=Dripping()), 3),
    ("status 302", lambda _: httpx.Response(302, headers={"location": "http://else.test"}), 1),
    ("status 429", lambda _: httpx.Response(429, headers={"retry-after": "0"}), 3),
    ("status 500", lambda _: httpx.Response(500, text="oops"), 3),
    ("status 401", lambda _: httpx.Response(401, text="no key"), 1),
    ("not whole JSON", lambda _: httpx.Response(200, text="<html>busy</html>"), 3),
    ("not whole JSON", lambda _: httpx.Response(200, text=json.dumps(completion())[:40]), 3),
    ("not UTF-8", lambda _: httpx.Response(200, content=b'{"choices": "\xff\xfe"}'), 3),
    ("no chat completion", lambda _: httpx.Response(200, json={"choices": []}), 3),
    ("no text", lambda _: httpx.Response(200, json=completion(None)), 3),  # type: ignore[arg-type]
    ("longer than", lambda _: httpx.Response(200, stream=Endless()), 1),
]


@pytest.mark.parametrize(("named", "handler", "attempts"), FAULTS, ids=[f[0] for f in FAULTS])
def test_a_fault_is_named_and_retried_within_limits(
    named: str, handler: Callable[[httpx.Request], httpx.Response], attempts: int
) -> None:
    reply = endpoint(handler).ask(ASKED, 16)
    assert named in reply.fault
    assert reply.text == ""
    assert reply.attempts == attempts


def test_a_rate_limit_that_passes_gives_the_answer() -> None:
    answers = iter(
        [httpx.Response(429), httpx.Response(503), httpx.Response(200, json=completion())]
    )
    reply = endpoint(lambda _: next(answers)).ask(ASKED, 16)
    assert (reply.text, reply.attempts) == ("Hello", 3)


def test_recorded_answers_are_replayed_offline_and_faults_are_asked_again(tmp_path: Path) -> None:
    record = tmp_path / "answers.jsonl"
    assert endpoint(down, record).ask(ASKED, 16).fault
    first = endpoint(lambda _: httpx.Response(200, json=completion()), record).ask(ASKED, 16)
    again = endpoint(down, record, offline=True).ask(ASKED, 16)
    assert again == first
    other = endpoint(down, record, offline=True).ask([Message("user", "Bye")], 16)
    assert "not recorded" in other.fault


def test_the_key_is_sent_and_never_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIMECHAT_API_KEY", "very-secret")
    seen: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers["authorization"])
        return httpx.Response(200, json=completion())

    endpoint(answer, tmp_path / "answers.jsonl").ask(ASKED, 16)
    assert seen == ["Bearer very-secret"]
    assert "very-secret" not in (tmp_path / "answers.jsonl").read_text()


def event(**row: Any) -> bytes:
    return f"data: {json.dumps(row)}\n\n".encode()


def piece(text: str | None = None, ending: str | None = None) -> bytes:
    delta = {} if text is None else {"content": text}
    return event(model="small", choices=[{"delta": delta, "finish_reason": ending}])


class Slowly(httpx.SyncByteStream):
    """The parts of a stream, a while before the third: its first word."""

    def __init__(self, *parts: bytes) -> None:
        self.parts = parts

    def __iter__(self) -> Iterator[bytes]:
        for i, part in enumerate(self.parts):
            time.sleep(0.05 if i == 2 else 0.0)
            yield part


def stream(*parts: bytes) -> httpx.Response:
    return httpx.Response(
        200, stream=Slowly(*parts), headers={"content-type": "text/event-stream; charset=utf-8"}
    )


USAGE = event(choices=[], usage={"prompt_tokens": 3, "completion_tokens": 2})
DONE = b"data: [DONE]\n\n"


def test_the_wait_for_the_first_word_is_taken_from_the_stream(tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(json.loads(request.content))
        late = piece(" Grüß") + piece(" Gott", "stop")
        # A role without words is no first word; an event may come in two parts.
        return stream(piece(""), b": ping\r\n\r\n", late[:30], late[30:], USAGE, DONE)

    record = tmp_path / "answers.jsonl"
    reply = endpoint(answer, record).ask(ASKED, 16)
    assert seen[0]["stream"] is True
    assert (reply.text, reply.model, reply.ending) == ("Grüß Gott", "small", "stop")
    assert (reply.prompt_tokens, reply.completion_tokens) == (3, 2)
    assert reply.first_token_s is not None
    assert 0.05 <= reply.first_token_s <= reply.seconds
    assert endpoint(down, record, offline=True).ask(ASKED, 16) == reply


def test_an_endpoint_without_streams_is_asked_without_and_told_so_once() -> None:
    seen: list[bool] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append("stream" in json.loads(request.content))
        if seen[-1]:
            return httpx.Response(422, text="extra field: stream_options")
        return httpx.Response(200, json=completion())

    asked = endpoint(answer)
    for text in ("Hi", "Bye"):
        reply = asked.ask([Message("user", text)], 16)
        assert (reply.text, reply.first_token_s) == ("Hello", None)
    assert seen == [True, False, False]


@pytest.mark.parametrize(
    ("named", "parts"),
    [
        ("broke off", (piece("Hel"),)),
        ("broke off", (piece("Hel"), DONE)),
        ("not whole JSON", (piece("Hel"), b'data: {"choices": [\n')),
        ("not UTF-8", (b'data: {"choices": "\xff"}\n',)),
        ("the endpoint says", (piece("Hel"), event(error={"message": "out of memory"}))),
        ("no chat completion", (b"data: 7\n",)),
        ("no chat completion", (b'data: {"choices": [7]}\n',)),
        ("no text", (event(choices=[{"delta": {"content": 7}}]),)),
    ],
)
def test_a_stream_that_goes_wrong_is_a_named_fault_and_never_half_an_answer(
    named: str, parts: tuple[bytes, ...]
) -> None:
    reply = endpoint(lambda _: stream(*parts)).ask(ASKED, 16)
    assert named in reply.fault
    assert (reply.text, reply.attempts) == ("", 3)


def test_an_empty_answer_is_an_answer() -> None:
    reply = endpoint(lambda _: httpx.Response(200, json=completion(""))).ask(ASKED, 16)
    assert (reply.text, reply.fault) == ("", "")


def test_a_model_that_is_another_is_told() -> None:
    assert names_another("gpt-big", "gpt-small")
    assert not names_another("gpt-big", "gpt-big-2026-01-01")
    assert not names_another("gpt-big", "")


@pytest.mark.parametrize("address", ["http://there.test/v1", "there#small", "http://#x"])
def test_an_address_without_host_or_model_is_refused(address: str) -> None:
    with pytest.raises(ModelError, match="HOST:PORT"):
        Endpoint(address)
