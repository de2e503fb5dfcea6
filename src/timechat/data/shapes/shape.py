"""Shape: one look that rows can have, and how a row of that look is read.

The shapes themselves stand beside this file; which of them a file has is `shapes.registry`'s.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from timechat.conversation import Message
from timechat.data.items import BadRowError, kind, writable

Fields = Mapping[str, Any]
# A part of a conversation to the field that holds it.
Roles = dict[str, str]
# Names of ignored fields are kept for the card, but no more of them than anybody would read.
MAX_IGNORED = 20


@dataclass(frozen=True, slots=True)
class Parts:
    """What a row says: its turns, and the answer that was preferred less."""

    messages: tuple[Message, ...]
    rejected: str = ""


@dataclass(slots=True)
class Reading:
    """How the rows of one file are read, and what was met on the way."""

    roles: Roles
    system: str = ""
    tool_calls: Literal["text", "drop"] = "text"
    ignored: set[str] = field(default_factory=set[str])
    met: Counter[str] = field(default_factory=Counter[str])

    def ignore(self, fields: Fields, known: frozenset[str] | set[str], prefix: str = "") -> None:
        """Remember the fields that nobody reads, where they hold something."""
        for key in fields.keys() - known:
            if fields[key] is not None and len(self.ignored) < MAX_IGNORED:
                self.ignored.add(prefix + str(key).encode("utf-8", "replace").decode())


@dataclass(frozen=True, slots=True)
class Shape:
    """`find` tells which fields of a row play which role, or None when the row is not one."""

    name: str
    looks: str
    find: Callable[[Fields], Roles | None]
    read: Callable[[Fields, Reading], Parts]
    known: tuple[str, ...] = ()


def fold(name: str) -> str:
    """A field's name as it is compared: `Review_Text` is `reviewtext`."""
    return name.strip().lower().replace(" ", "").replace("_", "").replace("-", "")


def folded(fields: Fields) -> dict[str, str]:
    """Folded name: the field's own name, for names that are there once."""
    counts = Counter(map(fold, fields))
    return {fold(name): name for name in fields if counts[fold(name)] == 1}


def text_of(fields: Fields, name: str) -> str:
    """A field as text: a string, a number or a truth value; missing is empty."""
    value = fields.get(name)
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    if not isinstance(value, str):
        raise BadRowError("content_not_a_string", f"{name[:40]} is {kind(value)}")
    return writable(value, name[:40])


def with_system(fields: Fields, reading: Reading, *turns: Message) -> tuple[Message, ...]:
    """The turns, under the row's own system prompt where it has one."""
    name = reading.roles.get("system")
    system = text_of(fields, name) if name else ""
    return (Message("system", system), *turns) if system.strip() else turns
