"""Tools over HTTP: through the template on their way in, parsed back on their way out."""

from __future__ import annotations

import json

import pytest
from conftest import build_tokenizer
from engine.test_calls import HERMES, ONE, TOOL

from serve.conftest import Site, build_site, says
from serve.test_chat_api import events
from timechat.engine.fake import FakeEngine
from timechat.engine.scribe import ThreadScribe
from timechat.model.render import Renderer


def calling(text: str) -> Site:
    site = build_site(FakeEngine(says(text)))
    site.responder.scribe = ThreadScribe(Renderer(build_tokenizer(HERMES)))
    return site


def test_a_call_comes_back_parsed_and_the_tool_went_in() -> None:
    site = calling(f"Let me see.\n{ONE}")
    (choice,) = site.chat(tools=[TOOL]).json()["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "Let me see.\n"
    (call,) = choice["message"]["tool_calls"]
    assert call["id"].startswith("call_")
    assert (call["type"], call["function"]["name"]) == ("function", "look")
    assert json.loads(call["function"]["arguments"]) == {"at": "ö"}
    prompt = build_tokenizer().decode(list(site.engine.requests[0].prompt))
    assert '"name": "look"' in prompt


def test_streamed_calls_carry_their_numbers_and_no_letter_of_their_markup() -> None:
    *rows, done = events(calling(ONE + ONE).chat(tools=[TOOL], stream=True))
    assert done == "[DONE]"
    deltas = [row["choices"][0]["delta"] for row in rows]
    assert "".join(delta.get("content", "") for delta in deltas) == ""
    calls = [call for delta in deltas for call in delta.get("tool_calls", ())]
    assert [call["index"] for call in calls] == [0, 1]
    assert len({call["id"] for call in calls}) == 2
    assert rows[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_without_tools_or_with_none_the_same_words_are_text() -> None:
    for fields in ({}, {"tools": [TOOL], "tool_choice": "none"}):
        (choice,) = calling(ONE).chat(**fields).json()["choices"]
        assert (choice["message"]["content"], choice["finish_reason"]) == (ONE, "stop")
        assert "tool_calls" not in choice["message"]


def test_a_call_that_is_cut_off_is_reported_as_length() -> None:
    (choice,) = calling(ONE).chat(tools=[TOOL], max_tokens=20).json()["choices"]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["content"] == ONE[:20]


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "f"}}])
def test_what_no_model_can_be_made_to_do_is_refused(choice: object) -> None:
    error = calling(ONE).chat(tools=[TOOL], tool_choice=choice).json()["error"]
    assert (error["param"], error["code"]) == ("tool_choice", "unsupported_value")


def test_tools_that_are_none_are_refused_by_place() -> None:
    for tools in ([{}], [{"type": "custom", "custom": {}}], [{"type": "function", "function": {}}]):
        response = calling(ONE).chat(tools=tools)
        assert response.status_code == 400
        assert response.json()["error"]["param"].startswith("tools[0]")


def test_a_template_without_a_place_for_tools_says_so() -> None:
    error = build_site().chat(tools=[TOOL]).json()["error"]
    assert (error["param"], error["code"]) == ("tools", "unsupported_value")
