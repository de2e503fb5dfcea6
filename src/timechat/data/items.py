"""Item: one thing in a container of any kind, as fields by name, or why it has none.

What the fields mean is for `data.shapes`; where an item came from is for the container.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from timechat.data.verdicts import Drop


@dataclass(frozen=True, slots=True)
class Item:
    """Fields by name. `line` is its first physical line, or its number where there are none."""

    line: int
    fields: Mapping[str, Any] | None = None
    fault: str = ""
    detail: str = ""


class Unsaved(str):
    """The formula of a cell whose value nobody worked out: a fault where the cell is read."""

    __slots__ = ()


class BadRowError(Exception):
    """A row that cannot be a conversation; carries its `Drop` and never leaves `data`."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.drop = Drop(reason, detail)


def json_item(text: str, line: int) -> Item:
    """The object that `text` is in JSON, or why it is none."""
    try:
        return Item(line, load_object(text))
    except BadRowError as error:
        return Item(line, None, error.drop.reason, error.drop.detail)


def load_object(text: str) -> dict[str, Any]:
    """One JSON object. Raises BadRowError."""
    try:
        value: object = json.loads(text, object_pairs_hook=_pairs)
    except json.JSONDecodeError as error:
        raise BadRowError("not_json", f"{error.msg} at column {error.colno}") from None
    except RecursionError:
        raise BadRowError("not_json", "nested too deeply") from None
    except ValueError as error:
        raise BadRowError("not_json", str(error)[:100]) from None
    if not isinstance(value, dict):
        raise BadRowError("not_an_object", f"{kind(value)}; a row is an object with named fields")
    return cast(dict[str, Any], value)


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


def writable(text: str, where: str) -> str:
    """`text`, unless it holds half a surrogate pair, which no UTF-8 file can hold."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise BadRowError("lone_surrogate", f"{where} holds half of a surrogate pair") from None
    return text


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise BadRowError("repeated_key", f"{short(twice)} is there twice in one object")
    return fields
