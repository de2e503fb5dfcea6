"""`/v1/chat/completions` as clients see it: whole answers, streams, refusals."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from serve.conftest import ANSWER, Site, build_site, says
from timechat.engine.fake import FakeEngine


def events(response: httpx.Response) -> list[Any]:
    """The data of a stream's events, `[DONE]` as it is."""
    rows = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    return [row if row == "[DONE]" else json.loads(row) for row in rows]


def test_a_whole_answer_has_text_ending_and_usage(site: Site) -> None:
    answer = site.chat().json()
    assert answer["object"] == "chat.completion"
    (choice,) = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": ANSWER, "refusal": None}
    assert choice["finish_reason"] == "stop"
    usage = answer["usage"]
    assert usage["completion_tokens"] == len(ANSWER.encode())
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_a_stream_opens_with_the_role_and_ends_with_reason_and_done(site: Site) -> None:
    response = site.chat(stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    *rows, done = events(response)
    assert done == "[DONE]"
    assert rows[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    text = "".join(row["choices"][0]["delta"].get("content", "") for row in rows)
    assert text == ANSWER
    assert [row["choices"][0]["finish_reason"] for row in rows][-1] == "stop"
    assert {row["id"] for row in rows} == {rows[0]["id"]}
    assert all("usage" not in row for row in rows)


def test_usage_comes_last_and_only_when_asked_for(site: Site) -> None:
    *rows, last, done = events(site.chat(stream=True, stream_options={"include_usage": True}))
    assert done == "[DONE]"
    assert all(row["usage"] is None for row in rows)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == len(ANSWER.encode())


def test_a_limit_is_reported_as_length(site: Site) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        choice = site.chat(**{name: 3}).json()["choices"][0]
        assert (choice["finish_reason"], choice["message"]["content"]) == ("length", "Gr\ufffd")


def test_stop_strings_end_the_answer_and_are_left_out(site: Site) -> None:
    choice = site.chat(stop=[", ", "friend"]).json()["choices"][0]
    assert choice["message"]["content"] == "Grüß Gott"
    assert choice["finish_reason"] == "stop"


def test_n_choices_come_with_their_own_numbers_and_seeds() -> None:
    engine = FakeEngine(says("ok"))
    *rows, _ = events(build_site(engine).chat(n=3, seed=7, stream=True))
    assert {row["choices"][0]["index"] for row in rows} == {0, 1, 2}
    # The three begin at once, so they reach the engine in any order.
    assert sorted(request.sampling.seed for request in engine.requests) == [7, 8, 9]


def test_unseeded_requests_differ_in_their_seeds() -> None:
    engine = FakeEngine(says("ok"))
    site = build_site(engine)
    site.chat(temperature=1.0)
    site.chat(temperature=1.0)
    first, second = (request.sampling.seed for request in engine.requests)
    assert first != second


def test_log_probabilities_come_with_bytes_and_alternatives(site: Site) -> None:
    content = site.chat(logprobs=True, top_logprobs=2).json()["choices"][0]["logprobs"]["content"]
    assert len(content) == len(ANSWER.encode())
    assert content[0]["token"] == "G"
    assert content[0]["bytes"] == [71]
    assert [len(row["top_logprobs"]) for row in content] == [2] * len(content)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0]"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"n": 5}, "n"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop.list[constrained-str]"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 6}, "top_logprobs"),
        ({"logit_bias": {"5": 1.0}}, "logit_bias"),
        ({"functions": [{}]}, "functions"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
         "messages[0].content"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_by_name(
    site: Site, fields: dict[str, Any], param: str
) -> None:
    response = site.chat(**fields)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["param"].startswith(param.split(".list")[0])


def test_an_unknown_model_is_404_and_names_the_nearest(site: Site) -> None:
    response = site.chat(model="tny")
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"
    assert "'tiny'" in response.json()["error"]["message"]


def test_a_conversation_beyond_the_window_is_refused_before_the_stream_begins() -> None:
    site = build_site(FakeEngine(window=64))
    response = site.chat(messages=[{"role": "user", "content": "x" * 99}], stream=True)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "context_length_exceeded"


def test_a_conversation_beyond_the_window_is_shortened_by_whole_turns_when_asked() -> None:
    engine = FakeEngine(says("ok"), window=120)
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "x" * 40},
        {"role": "assistant", "content": "y" * 40},
        {"role": "user", "content": "z"},
    ]
    answer = build_site(engine).chat(messages=messages, truncation="auto").json()
    assert answer["notice"] == "2 oldest messages left out"
    text = bytes(b for b in engine.requests[0].prompt if b < 256)
    assert len(text) < 120


def test_hints_are_taken_and_other_unknown_fields_are_named(site: Site) -> None:
    response = site.chat(user="u", store=True, typo=1)
    assert response.status_code == 200
    assert response.headers["x-ignored-fields"] == "typo"


def test_no_field_name_breaks_the_header_that_names_it(site: Site) -> None:
    odd = {"\u0100": 1, " a": 1, "b\r\nset-cookie: x": 1, "c" * 9000: 1}
    many = {f"f{n}": n for n in range(40)}
    for path, asked in (("chat/completions", {"messages": [{"role": "user", "content": "Hi"}]}),
                        ("completions", {"prompt": "Hi"})):  # fmt: skip
        body = {"model": "tiny", **asked, **odd, **many}
        response = site.ask("POST", f"/v1/{path}", json=body)
        assert response.status_code == 200
        assert "set-cookie" not in response.headers
        named = response.headers["x-ignored-fields"]
        assert len(named) < 1000
        assert named.isascii()
        assert named.endswith("and 28 more")


def test_a_failing_engine_ends_the_stream_with_an_error_and_without_done() -> None:
    site = build_site(FakeEngine(says("hello"), fails_after=2))
    *_, last = events(site.chat(stream=True))
    assert last["error"]["message"] == "as scripted"
    response = site.chat()
    assert response.status_code == 503
    assert "Retry-After" in response.headers


def test_the_request_id_is_the_clients_own_or_a_new_one(site: Site) -> None:
    given = site.ask("GET", "/health", headers={"X-Request-ID": "abc-1"})
    assert given.headers["x-request-id"] == "abc-1"
    odd = site.ask("GET", "/health", headers={"X-Request-ID": "a b\tc"})
    assert odd.headers["x-request-id"].startswith("req_")
