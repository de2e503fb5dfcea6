"""Lists of turns: OpenAI's chat rows and ShareGPT's, with weights, tool calls and content parts."""

from __future__ import annotations

import json
import math
from typing import Any, cast

from timechat.conversation import ROLES, Message, Role
from timechat.data.items import BadRowError, kind, short, writable
from timechat.data.shapes.shape import Fields, Parts, Reading, Roles, Shape, folded, text_of
from timechat.data.shapes.tools import calls_text, response_text, system_text
from timechat.errors import nearest

TURN_FIELDS = ("messages", "conversations", "conversation", "dialog", "dialogue", "turns", "chat")
ROLE_KEYS, CONTENT_KEYS = ("role", "from"), ("content", "value")
CALL_KEYS = ("tool_calls", "function_call")
READ_KEYS = frozenset({*ROLE_KEYS, *CONTENT_KEYS, *CALL_KEYS, "weight", "tool_call_id"})
# Every name that a role goes by. A call and what came back are turns of their own in ShareGPT.
NAMES: dict[str, Role | str] = {
    **{role: role for role in ROLES},
    "developer": "system",
    "human": "user",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "ipython": "tool",
    "function_call": "call",
    "tool_call": "call",
}


def _find_turns(fields: Fields, key: str) -> Roles | None:
    names = folded(fields)
    for wanted in TURN_FIELDS:
        name = names.get(wanted)
        if name is None:
            continue
        value = _as_list(fields[name])
        first = value[0] if isinstance(value, list) and value else None
        if isinstance(first, dict) and key in first:
            return {"messages": name} | _beside(names)
        # A row of ours whose list is broken is a broken row of ours, and says so.
        if key == "role" and wanted == "messages" and not isinstance(first, dict):
            return {"messages": name} | _beside(names)
    return None


def _beside(names: dict[str, str]) -> Roles:
    return {role: names[role] for role in ("system", "tools") if role in names}


def read_turns(fields: Fields, reading: Reading) -> Parts:
    """The turns that a row lists, under its system prompt and with its tools."""
    name = reading.roles["messages"]
    if fields.get(name) is None:
        keys = ", ".join(map(short, list(fields)[:8])) or "none"
        raise BadRowError("no_messages", f"keys: {keys}; this file's rows have {name!r}")
    messages = list(turns_of(fields[name], reading, name))
    if (system := reading.roles.get("system")) and messages[0].role != "system":
        text = text_of(fields, system)
        if text.strip():
            messages.insert(0, Message("system", text))
    if (tools := reading.roles.get("tools")) and fields.get(tools):
        messages = _with_tools(messages, fields[tools], reading)
    return Parts(tuple(messages))


def turns_of(value: object, reading: Reading, name: str = "messages") -> tuple[Message, ...]:
    """The messages of a list of turns. Raises BadRowError."""
    turns = _as_list(value)
    if not isinstance(turns, list):
        raise BadRowError("messages_not_a_list", f"{name} is {kind(turns)}")
    if not turns:
        raise BadRowError("no_messages", f"{name} is an empty list")
    messages: list[Message] = []
    for number, turn in enumerate(cast(list[object], turns), 1):
        message, is_response = _message(turn, f"message {number}", reading)
        if is_response and messages and messages[-1].role == "user" and _responds(messages[-1]):
            # Several calls at once are answered in one turn.
            joined = messages[-1].content + "\n" + message.content
            messages[-1] = Message("user", joined)
        else:
            messages.append(message)
    return tuple(messages)


def _responds(message: Message) -> bool:
    return message.content.endswith("</tool_response>")


def _message(turn: object, where: str, reading: Reading) -> tuple[Message, bool]:
    """One message, and whether it is what a tool gave back."""
    if not isinstance(turn, dict):
        raise BadRowError("message_not_an_object", f"{where} is {kind(turn)}")
    fields = cast(dict[str, Any], turn)
    name: object = fields.get("role", fields.get("from"))
    role = NAMES.get(name.strip().lower()) if isinstance(name, str) else None
    if role is None:
        hint = nearest(name, ROLES) if isinstance(name, str) else "known: " + ", ".join(ROLES)
        raise BadRowError("unknown_role", f"{where}: {short(name)} ({hint})")
    reading.ignore(fields, READ_KEYS, "messages.")
    weight = _weight(fields.get("weight"), where)
    calls: object = next((fields[key] for key in CALL_KEYS if fields.get(key)), None)
    content: object = fields.get("content", fields.get("value"))
    if role == "call":
        calls, content = content, None
    if calls or role == "tool":
        _meet_tool(where, reading)
    if calls:
        said = _content(content, where) + "\n" if content else ""
        return Message("assistant", said + calls_text(calls, where), weight), False
    text = _content(content, where)
    if role == "tool":
        return Message("user", response_text(text)), True
    return Message(cast(Role, role), text, weight), False


def _meet_tool(where: str, reading: Reading) -> None:
    if reading.tool_calls == "drop":
        raise BadRowError("tool_call", f"{where} calls a tool, and data.tool_calls is drop")
    reading.met["tool calls written as text"] += 1


def _content(content: object, where: str) -> str:
    """A content as text: a string, or OpenAI's list of parts."""
    if isinstance(content, str):
        return writable(content, where)
    if not isinstance(content, list):
        raise BadRowError("content_not_a_string", f"{where}: content is {kind(content)}")
    texts: list[str] = []
    for part in cast(list[object], content):
        fields = cast(dict[str, Any], part) if isinstance(part, dict) else {}
        text = fields.get("text")
        if fields.get("type") == "refusal":
            text = fields.get("refusal")
        if fields.get("type") in ("image_url", "image", "input_audio", "audio", "video", "file"):
            what = fields["type"]
            raise BadRowError("not_text", f"{where} holds {what!r}; only text is trained on")
        if not isinstance(text, str):
            raise BadRowError("content_not_a_string", f"{where}: a part of it is {kind(part)}")
        texts.append(text)
    return writable("".join(texts), where)


def _with_tools(messages: list[Message], tools: object, reading: Reading) -> list[Message]:
    own = messages[0].content if messages[0].role == "system" else reading.system
    text = system_text(own, tools)
    rest = messages[1:] if messages[0].role == "system" else messages
    return [Message("system", text), *rest] if text.strip() else rest


def _as_list(value: object) -> object:
    """The list itself, or the one that a table's cell holds as JSON."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _weight(value: object, where: str) -> float:
    if value is None:
        return 1.0
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadRowError("bad_weight", f"{where}: weight is {kind(value)}; a number from 0 to 1")
    if not (math.isfinite(value) and 0 <= value <= 1):
        raise BadRowError("bad_weight", f"{where}: weight is {short(value)}; from 0 to 1")
    return float(value)


CHAT = Shape(
    "chat",
    '{"messages": [{"role": "user", "content": …}, …]}',
    lambda fields: _find_turns(fields, "role"),
    read_turns,
    TURN_FIELDS,
)
SHAREGPT = Shape(
    "sharegpt",
    '{"conversations": [{"from": "human", "value": …}, …]}',
    lambda fields: _find_turns(fields, "from"),
    read_turns,
    TURN_FIELDS,
)
