"""Conversations in OpenAI's shape to token ids, off the event loop."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

from timechat.conversation import Message, as_role
from timechat.engine.calls import form_of
from timechat.errors import UserError
from timechat.model.render import Renderer


class MessageError(UserError):
    """A message that cannot be rendered; `param` names it."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(message)
        self.param = param


class ThreadScribe:
    """Renders in a thread of this process: for templates that are trusted."""

    def __init__(self, renderer: Renderer) -> None:
        self.renderer = renderer
        self.stop_ids = renderer.stop_ids
        self.calls = form_of(renderer.template)

    async def start(self) -> None:
        """Nothing to start."""

    async def stop(self) -> None:
        """Nothing to stop."""

    async def prompt(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]
    ) -> list[int]:
        return await asyncio.to_thread(render, self.renderer, messages, tools)

    async def encode(self, text: str) -> list[int]:
        return await asyncio.to_thread(encode, self.renderer, text)


def render(
    renderer: Renderer,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] = (),
) -> list[int]:
    """The prompt of a conversation; raises MessageError for what no template takes.

    A conversation with tools in it goes through the model's own template whole.
    """
    with_tools = bool(tools) or any(m["role"] == "tool" or m.get("tool_calls") for m in messages)
    if with_tools:
        return render_tools(renderer, messages, tools)
    turns: list[Message] = []
    for place, message in enumerate(messages):
        role = "system" if message["role"] == "developer" else message["role"]
        known = as_role(role)
        if known is None:
            raise MessageError(
                f"messages[{place}].role", f"the model's template has no {role!r} turns"
            )
        turns.append(Message(known, text_of(message.get("content"), place)))
    return renderer.prompt(turns)


def render_tools(
    renderer: Renderer, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]
) -> list[int]:
    """The prompt by the template alone, which must know tools: else they would be left out."""
    if "tools" not in renderer.template:
        raise MessageError("tools", "the model's chat template has no place for tools")
    rows: list[dict[str, Any]] = []
    for place, message in enumerate(messages):
        row = dict(message)
        row["content"] = text_of(row.get("content"), place)
        row["role"] = "system" if row["role"] == "developer" else row["role"]
        if calls := row.get("tool_calls"):
            row["tool_calls"] = [_with_object(call, place) for call in calls]
        _check_words(renderer, row, f"messages[{place}]")
        rows.append(row)
    _check_words(renderer, list(tools), "tools")
    return renderer.prompt_with_tools(rows, [dict(tool) for tool in tools])


def _with_object(call: Mapping[str, Any], place: int) -> dict[str, Any]:
    """A call with its arguments as an object: on the wire they are text, templates write JSON."""
    function = call["function"]
    try:
        arguments: object = json.loads(function["arguments"] or "{}")
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise MessageError(
            f"messages[{place}].tool_calls", "the arguments of a call are no JSON object"
        )
    return {**call, "function": {**function, "arguments": arguments}}


def _check_words(renderer: Renderer, value: object, param: str) -> None:
    """What others write must stay text: none of it may spell a special token of the model."""
    if isinstance(value, str):
        if renderer.holds_special(value):
            raise MessageError(param, "holds a special token of the model as text")
    elif isinstance(value, Mapping):
        for key, inner in cast(Mapping[str, object], value).items():
            _check_words(renderer, key, param)
            _check_words(renderer, inner, param)
    elif isinstance(value, list):
        for inner in cast(list[object], value):
            _check_words(renderer, inner, param)


def encode(renderer: Renderer, text: str) -> list[int]:
    """Ids of a bare text, under the tokenizer's own opening; special tokens in it are text."""
    options: dict[str, Any] = {"split_special_tokens": True}
    return list(renderer.tokenizer(text, **options)["input_ids"])


def text_of(content: object, place: int) -> str:
    """The text of a message's content: a string, or parts that are all text."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    texts: list[str] = []
    for part in content if isinstance(content, list) else []:
        if part.get("type") != "text":
            raise MessageError(
                f"messages[{place}].content",
                f"parts of the type {part.get('type')!r} are not understood: only text",
            )
        text = part.get("text")
        if not isinstance(text, str):
            raise MessageError(f"messages[{place}].content", "a part of the type 'text' has none")
        texts.append(text)
    return "".join(texts)
