"""One JSON line to one Conversation, or the reason why not.

The shape only: types, known roles, text that can be written again. Whether the turns make sense
is `data.clean`'s question.
"""

from __future__ import annotations

import json
import math
from typing import Any, cast

from timechat.conversation import ROLES, Conversation, Message, as_role, content_hash
from timechat.data.clean import Drop
from timechat.errors import nearest

ROW_KEYS = frozenset({"messages", "id", "group", "source", "tags", "answers"})
MESSAGE_KEYS = frozenset({"role", "content", "weight"})
CALL_KEYS = ("tool_calls", "function_call")
# Names of ignored keys are kept for the card, but no more of them than anybody would read.
MAX_IGNORED = 20


class BadRowError(Exception):
    """A row that cannot be a conversation; carries its `Drop` and never leaves `data`."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.drop = Drop(reason, detail)


def parse_row(text: str, source: str, line: int, ignored: set[str]) -> Conversation:
    """Read one JSON line; adds the keys nobody asked for to `ignored`. Raises BadRowError."""
    row = _load(text)
    _ignore(row, ROW_KEYS, "", ignored)
    raw = row.get("messages")
    if raw is None:
        keys = ", ".join(map(short, list(row)[:8])) or "none"
        raise BadRowError("no_messages", f'keys: {keys}; a row is {{"messages": [...]}}')
    if not isinstance(raw, list):
        raise BadRowError("messages_not_a_list", f"messages is {kind(raw)}")
    turns = cast(list[object], raw)
    if not turns:
        raise BadRowError("no_messages", "messages is an empty list")
    messages = tuple(_message(turn, i, ignored) for i, turn in enumerate(turns, 1))
    tags = _texts(row, "tags")
    if origin := _name(row, "source"):
        # `Conversation.source` is the file that a line number belongs to.
        tags = (*tags, f"source:{origin}")
    return Conversation(
        id=_name(row, "id") or content_hash(messages),
        messages=messages,
        source=source,
        line=line,
        group=_name(row, "group"),
        tags=tags,
        answers=_texts(row, "answers"),
    )


def writable(text: str, where: str) -> str:
    """`text`, unless it holds half a surrogate pair, which no UTF-8 file can hold."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise BadRowError("lone_surrogate", f"{where} holds half of a surrogate pair") from None
    return text


def kind(value: object) -> str:
    """What JSON calls the type of `value`."""
    names: dict[type, str] = {str: "a string", bool: "a boolean", list: "a list", dict: "an object"}
    if value is None:
        return "null"
    return names.get(type(value), "a number")


def short(value: object) -> str:
    """`value` as one short printable piece of a message."""
    text = repr(value)
    return text if len(text) <= 60 else text[:59] + "…"


def _load(text: str) -> dict[str, Any]:
    try:
        row: object = json.loads(text, object_pairs_hook=_pairs)
    except json.JSONDecodeError as error:
        raise BadRowError("not_json", f"{error.msg} at column {error.colno}") from None
    except RecursionError:
        raise BadRowError("not_json", "nested too deeply") from None
    except ValueError as error:
        raise BadRowError("not_json", str(error)[:100]) from None
    if not isinstance(row, dict):
        raise BadRowError("not_an_object", f'{kind(row)}; a row is {{"messages": [...]}}')
    return cast(dict[str, Any], row)


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise BadRowError("repeated_key", f"{short(twice)} is there twice in one object")
    return row


def _message(turn: object, number: int, ignored: set[str]) -> Message:
    where = f"message {number}"
    if not isinstance(turn, dict):
        raise BadRowError("message_not_an_object", f"{where} is {kind(turn)}")
    fields = cast(dict[str, Any], turn)
    role = as_role(name) if isinstance(name := fields.get("role"), str) else None
    if role is None:
        hint = nearest(name, ROLES) if isinstance(name, str) else "known: " + ", ".join(ROLES)
        raise BadRowError("unknown_role", f"{where}: {short(name)} ({hint})")
    if called := next((key for key in CALL_KEYS if fields.get(key)), None):
        raise BadRowError("tool_call", f"{where} has {called}, which cannot be trained on")
    content = fields.get("content")
    if not isinstance(content, str):
        raise BadRowError("content_not_a_string", f"{where}: content is {kind(content)}")
    _ignore(fields, MESSAGE_KEYS, "messages.", ignored)
    return Message(role, writable(content, where), _weight(fields.get("weight"), where))


def _weight(value: object, where: str) -> float:
    if value is None:
        return 1.0
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadRowError("bad_weight", f"{where}: weight is {kind(value)}; a number from 0 to 1")
    if not (math.isfinite(value) and 0 <= value <= 1):
        raise BadRowError("bad_weight", f"{where}: weight is {short(value)}; from 0 to 1")
    return float(value)


def _name(row: dict[str, Any], key: str) -> str:
    value: object = row.get(key)
    if value is None:
        return ""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise BadRowError(f"bad_{key}", f"{key} is {kind(value)}; a string")
    return writable(value.strip(), key)


def _texts(row: dict[str, Any], key: str) -> tuple[str, ...]:
    value: object = row.get(key)
    if value is None:
        return ()
    items = cast(list[object], value) if isinstance(value, list) else [None]
    if not all(isinstance(item, str) and item.strip() for item in items):
        raise BadRowError(f"bad_{key}", f"{key} must be a list of non-empty strings")
    return tuple(writable(str(item), key) for item in items)


def _ignore(fields: dict[str, Any], known: frozenset[str], prefix: str, into: set[str]) -> None:
    for key in fields.keys() - known:
        if len(into) < MAX_IGNORED:
            into.add(prefix + key.encode("utf-8", "replace").decode())
