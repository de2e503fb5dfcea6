"""Message and Conversation: what flows through the whole project.

Reading files into conversations is `data.sources`' work; turning them into tokens is
`model.render`'s.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast, get_args

Role = Literal["system", "user", "assistant"]
ROLES: tuple[str, ...] = get_args(Role)


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `weight` 0 keeps an assistant turn as context and out of the loss."""

    role: Role
    content: str
    weight: float = 1.0

    def to_dict(self) -> dict[str, Any]:
        out: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.weight != 1.0:
            out["weight"] = self.weight
        return out


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages with where they came from.

    `id` is the content's hash unless the row named one. `group` names rows that belong together
    (one fact, one document): a split that we make keeps a group on one side, and statistics
    cluster by it. `answers` are short strings of which a right answer contains one; empty where
    the reference answer itself is the only measure. `rejected` is the answer that was preferred
    less than the last one, where the row says so.

    A conversation of assistant turns alone is no conversation but a text (`is_text`).
    """

    id: str
    messages: tuple[Message, ...]
    source: str = ""
    line: int = 0
    group: str = ""
    tags: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    rejected: str = ""

    @property
    def is_text(self) -> bool:
        """Whether it is a passage of text, which is learned as it stands, under no template."""
        return is_text(self.messages)

    @property
    def question(self) -> tuple[Message, ...]:
        """All but the last assistant turn."""
        return self.messages[:-1]

    @property
    def reference(self) -> str:
        """The last assistant turn: the reference answer of a question."""
        return self.messages[-1].content

    @property
    def cluster(self) -> str:
        """The unit of statistics: the group, or the row itself."""
        return self.group or self.id

    def with_system(self, text: str) -> Conversation:
        """The same conversation under a system prompt, unless it brings its own."""
        if not text or self.is_text or (self.messages and self.messages[0].role == "system"):
            return self
        return self.with_messages((Message("system", text), *self.messages))

    def with_messages(self, messages: tuple[Message, ...]) -> Conversation:
        return replace(self, messages=messages)

    def to_dict(self) -> dict[str, Any]:
        out: dict[str, Any] = {"id": self.id, "messages": [m.to_dict() for m in self.messages]}
        for name in ("group", "source", "line"):
            if value := getattr(self, name):
                out[name] = value
        for name in ("tags", "answers"):
            if value := getattr(self, name):
                out[name] = list(value)
        if self.rejected:
            out["rejected"] = self.rejected
        return out

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Conversation:
        """The inverse of `to_dict`; for rows that `data.sources` has checked already."""
        messages = tuple(
            Message(m["role"], m["content"], float(m.get("weight", 1.0))) for m in row["messages"]
        )
        return cls(
            id=row.get("id") or content_hash(messages),
            messages=messages,
            source=row.get("source", ""),
            line=row.get("line", 0),
            group=row.get("group", ""),
            tags=tuple(row.get("tags", ())),
            answers=tuple(row.get("answers", ())),
            rejected=row.get("rejected", ""),
        )


def is_text(messages: Sequence[Message]) -> bool:
    """Whether nobody is spoken to: assistant turns alone."""
    return bool(messages) and all(message.role == "assistant" for message in messages)


def content_hash(messages: tuple[Message, ...]) -> str:
    """The first 16 hex digits of the SHA-256 of roles and contents."""
    payload = json.dumps([[m.role, m.content] for m in messages], ensure_ascii=False)
    return hashlib.sha256(payload.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def as_role(name: object) -> Role | None:
    """The role of that name, or None when there is no such role."""
    return cast(Role, name) if name in ROLES else None
