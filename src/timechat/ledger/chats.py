"""Conversations that people keep: whole, each in its project, found again by their words."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import delete, func, insert, select, update

from timechat.errors import LedgerError
from timechat.ledger.database import Ledger
from timechat.ledger.tables import chats, now_ms

MAX_BYTES = 2_000_000
MAX_KEPT = 5_000
MAX_LISTED = 200


@dataclass(frozen=True, slots=True)
class Chat:
    """One conversation as the page keeps it. `turns` are JSON objects with a `role` each; an
    assistant's turn holds `answers`, of which the `kept` one went on into the history."""

    id: str
    title: str
    system: str = ""
    turns: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    updated_ms: int = 0

    def messages(self) -> list[dict[str, str]]:
        """The conversation as a training row would have it: one answer a turn, none empty."""
        found = [{"role": "system", "content": self.system}] if self.system.strip() else []
        for turn in self.turns:
            role = turn["role"]
            text = turn["content"] if role == "user" else turn["answers"][turn["kept"]]["content"]
            if text:
                found.append({"role": role, "content": text})
        return found


def keep_chat(ledger: Ledger, project: str, chat: Chat) -> None:
    """Write the conversation, new or changed. Raises LedgerError where it is too large, or one more
    than a project may keep."""
    content = {"title": chat.title, "system": chat.system, "turns": chat.turns}
    size = len(json.dumps(content))
    if size > MAX_BYTES:
        raise LedgerError(f"this conversation has {size:,} bytes; {MAX_BYTES:,} can be kept")
    mine = (chats.c.id == chat.id) & (chats.c.project == project)
    content |= {"words": _words(chat), "updated_ms": now_ms()}
    with ledger.write() as connection:
        if connection.execute(update(chats).where(mine).values(**content)).rowcount == 0:
            theirs = select(func.count()).where(chats.c.project == project)
            if (connection.scalar(theirs) or 0) >= MAX_KEPT:
                raise LedgerError(f"{MAX_KEPT:,} conversations are kept already: delete some first")
            row = {"id": chat.id, "project": project, "created_ms": now_ms()}
            connection.execute(insert(chats).values(**row, **content))


def find_chat(ledger: Ledger, project: str, chat_id: str) -> Chat | None:
    with ledger.read() as connection:
        mine = (chats.c.id == chat_id) & (chats.c.project == project)
        row = connection.execute(select(chats).where(mine)).first()
    return Chat(row.id, row.title, row.system, row.turns, row.updated_ms) if row else None


def list_chats(ledger: Ledger, project: str, query: str = "") -> list[Chat]:
    """The latest first, without their turns; with a query, those that hold every word of it."""
    wanted = chats.c.project == project
    # The words are searched as they are: LIKE would read % and _ in them as wildcards.
    place = func.instr if ledger.engine.dialect.name == "sqlite" else func.strpos
    for word in query.lower().split()[:8]:
        wanted &= place(chats.c.words, word) > 0
    columns = chats.c.id, chats.c.title, chats.c.updated_ms
    latest = select(*columns).where(wanted).order_by(chats.c.updated_ms.desc()).limit(MAX_LISTED)
    with ledger.read() as connection:
        rows = connection.execute(latest)
        return [Chat(row.id, row.title, updated_ms=row.updated_ms) for row in rows]


def remove_chat(ledger: Ledger, project: str, chat_id: str) -> bool:
    """Delete for good; returns whether it was there."""
    mine = (chats.c.id == chat_id) & (chats.c.project == project)
    with ledger.write() as connection:
        return connection.execute(delete(chats).where(mine)).rowcount > 0


def _words(chat: Chat) -> str:
    return "\n".join([chat.title, *(m["content"] for m in chat.messages())]).lower()
