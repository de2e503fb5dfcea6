"""Conversations kept, searched, exported and deleted, each within its project."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request
from pydantic import Field
from starlette.responses import Response

from timechat.ledger.chats import Chat, find_chat, keep_chat, list_chats, remove_chat
from timechat.serve.errors import ApiError
from timechat.serve.gate import gate_of
from timechat.serve.studio.desk import Part, desk_of

router = APIRouter(tags=["studio"])

ChatId = Annotated[str, Path(pattern=r"^[0-9A-Za-z-]{1,64}$")]
Text = Annotated[str, Field(max_length=1_000_000)]


class AnswerPart(Part):
    """One model's answer, with what the page measured while it came."""

    model: Annotated[str, Field(max_length=500)]
    content: Text = ""
    ttft_ms: int | None = None
    tokens: int | None = None
    tokens_per_second: float | None = None
    finish: str | None = None
    fault: str | None = None


class UserTurn(Part):
    role: Literal["user"]
    content: Text


class AssistantTurn(Part):
    role: Literal["assistant"]
    answers: Annotated[list[AnswerPart], Field(min_length=1, max_length=2)]
    kept: Annotated[int, Field(ge=0, le=1)] = 0
    picked: Annotated[int, Field(ge=0, le=1)] | None = None
    blind: bool = False


class ChatBody(Part):
    title: Annotated[str, Field(max_length=200)] = ""
    system: Text = ""
    turns: Annotated[
        list[Annotated[UserTurn | AssistantTurn, Field(discriminator="role")]],
        Field(max_length=2000),
    ]


@router.get("/studio/conversations")
def search(request: Request, query: Annotated[str, Query(max_length=200)] = "") -> dict[str, Any]:
    found = list_chats(desk_of(request).ledger, gate_of(request).caller.project, query)
    rows = [{"id": c.id, "title": c.title, "updated_ms": c.updated_ms} for c in found]
    return {"conversations": rows}


@router.get("/studio/conversations/{chat_id}")
def fetch(chat_id: str, request: Request) -> dict[str, Any]:
    chat = _find(chat_id, request)
    return {"id": chat.id, "title": chat.title, "system": chat.system, "turns": chat.turns}


@router.put("/studio/conversations/{chat_id}", status_code=204)
def keep(chat_id: ChatId, body: ChatBody, request: Request) -> None:
    for turn in body.turns:
        if isinstance(turn, AssistantTurn) and turn.kept >= len(turn.answers):
            raise ApiError(400, "`kept` names an answer that is not there", param="turns")
    turns = [turn.model_dump(exclude_none=True) for turn in body.turns]
    chat = Chat(chat_id, body.title, body.system, turns)
    keep_chat(desk_of(request).ledger, gate_of(request).caller.project, chat)


@router.delete("/studio/conversations/{chat_id}", status_code=204)
def remove(chat_id: str, request: Request) -> None:
    project = gate_of(request).caller.project
    if not remove_chat(desk_of(request).ledger, project, chat_id):
        raise ApiError(404, f"no conversation {chat_id!r}")


@router.get("/studio/conversations/{chat_id}/export")
def export(chat_id: str, request: Request) -> Response:
    """The conversation as one row that `timechat prepare` reads."""
    chat = _find(chat_id, request)
    row = {"messages": chat.messages(), "id": chat.id, "source": "chat"}
    name = f"conversation-{chat_id}.jsonl"
    return Response(
        json.dumps(row, ensure_ascii=False) + "\n",
        media_type="application/x-ndjson",
        headers={"Content-Disposition": f'attachment; filename="{name}"'},
    )


def _find(chat_id: str, request: Request) -> Chat:
    project = gate_of(request).caller.project
    chat = find_chat(desk_of(request).ledger, project, chat_id)
    if chat is None:
        raise ApiError(404, f"no conversation {chat_id!r}")
    return chat
