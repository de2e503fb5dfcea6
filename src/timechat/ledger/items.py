"""Items as rows of the ledger, and back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

from sqlalchemy import Connection, select

from timechat.conversation import Message
from timechat.ledger.judging import Answer, Item, Suggestion, Task
from timechat.ledger.tables import annotation_suggestions as suggestions
from timechat.ledger.tables import now_ms


def to_row(item: Item, queue: int) -> dict[str, Any]:
    return {
        "queue": queue,
        "task": item.task,
        "fingerprint": item.fingerprint,
        "row_id": item.row_id,
        "group_name": item.group,
        "source": item.source,
        "line": item.line,
        "prompt": [m.to_dict() for m in item.prompt],
        "answers": [{"text": a.text, "origin": a.origin} for a in item.answers],
        "created_ms": now_ms(),
    }


def from_row(row: Any) -> Item:
    assert row.task in get_args(Task)
    return Item(
        task=row.task,
        prompt=tuple(Message(m["role"], m["content"], m.get("weight", 1.0)) for m in row.prompt),
        answers=tuple(Answer(a["text"], a["origin"]) for a in row.answers),
        row_id=row.row_id,
        group=row.group_name,
        source=row.source,
        line=row.line,
        id=row.id,
    )


def with_suggestions(connection: Connection, found: list[Item]) -> list[Item]:
    by_item: dict[int, list[Suggestion]] = {}
    query = select(suggestions).order_by(suggestions.c.id)
    if len(found) == 1:
        query = query.where(suggestions.c.item == found[0].id)
    for row in connection.execute(query):
        by_item.setdefault(row.item, []).append(Suggestion(row.model, row.value))
    return [replace(item, suggestions=tuple(by_item.get(item.id, ()))) for item in found]
