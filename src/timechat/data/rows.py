"""One item to one Conversation under its file's shape, or the reason why not.

The shape only: types, known roles, text that can be written again. Whether the turns make sense
is `cleaning`'s question.
"""

from __future__ import annotations

from typing import Any, cast

from timechat.conversation import Conversation, content_hash
from timechat.data.items import BadRowError, Item, Unsaved, kind, writable
from timechat.data.shapes.shape import Fields, Reading, Shape

OWN_KEYS = ("id", "group", "source", "tags", "answers", "rejected")


def to_conversation(
    item: Item, shape: Shape, reading: Reading, source: str, is_table: bool = False
) -> Conversation:
    """The conversation of one item. Raises BadRowError.

    Beside its turns a row of ours may carry `OWN_KEYS`; in a table, and in the shapes of others,
    only a group and an id are looked for under their plain names.
    """
    if item.fields is None:
        raise BadRowError(item.fault, item.detail)
    fields, roles = item.fields, reading.roles
    named = {role: roles.get(role, role) for role in ("id", "group")}
    for name in (*roles.values(), *named.values()):
        if isinstance(fields.get(name), Unsaved):
            detail = f"{name[:40]!r} holds a formula without a saved value"
            raise BadRowError("formula_without_value", detail)
    parts = shape.read(fields, reading)
    is_ours = shape.name == "chat" and not is_table
    known = {*roles.values(), *named.values(), *(OWN_KEYS if is_ours else ())}
    reading.ignore(fields, known)
    tags: tuple[str, ...] = ()
    if is_ours:
        tags = _texts(fields, "tags")
        if origin := _name(fields, "source"):
            # `Conversation.source` is the file that a line number belongs to.
            tags = (*tags, f"source:{origin}")
    return Conversation(
        id=_name(fields, named["id"], is_ours) or content_hash(parts.messages),
        messages=parts.messages,
        source=source,
        line=item.line,
        group=_name(fields, named["group"], is_ours),
        tags=tags,
        answers=_texts(fields, "answers") if is_ours else (),
        rejected=parts.rejected or (_name(fields, "rejected") if is_ours else ""),
    )


def _name(fields: Fields, key: str, strict: bool = True) -> str:
    value: object = fields.get(key)
    if value is None:
        return ""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        if not strict:
            return str(value)[:200]
        raise BadRowError(f"bad_{key}", f"{key} is {kind(value)}; a string")
    return writable(value.strip(), key)


def _texts(fields: Fields, key: str) -> tuple[str, ...]:
    value: object = fields.get(key)
    if value is None:
        return ()
    items = cast(list[Any], value) if isinstance(value, list) else [None]
    if not all(isinstance(item, str) and item.strip() for item in items):
        raise BadRowError(f"bad_{key}", f"{key} must be a list of non-empty strings")
    return tuple(writable(str(item), key) for item in items)
