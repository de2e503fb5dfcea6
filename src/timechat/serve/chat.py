"""`/v1/chat/completions`: messages in, an answer or a stream of its parts out."""

from __future__ import annotations

import json
import secrets
import time
import uuid
from collections import Counter
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field, replace
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from timechat.engine.calls import Call
from timechat.engine.protocol import Ending, EngineError
from timechat.engine.responder import Ask, Piece, Said, Usage
from timechat.serve.gate import Gate, gate_of
from timechat.serve.registry import Served
from timechat.serve.sse import WHOLE_OR_STREAMED, EventStream, collected
from timechat.serve.wire import ChatRequest, schema_of

router = APIRouter()

FINISH = {Ending.STOP: "stop", Ending.LENGTH: "length", Ending.CANCELLED: "stop"}


@router.post("/v1/chat/completions", tags=["chat"], responses=WHOLE_OR_STREAMED)
async def create_chat_completion(body: ChatRequest, request: Request) -> Response:
    """Answer a conversation."""
    gate = gate_of(request)
    body.check()
    model = await gate.find(body.model)
    asks = asks_of(body, gate)
    head = Head(model)
    headers = {**body.headers, "x-model-digest": model.digest}
    pieces = gate.answers(model, asks)
    first = await gate.first(pieces)
    if body.stream:
        events = chunks(head, first, pieces, len(asks), body.wants_usage)
        return EventStream(events, headers)
    answers = await gate.attended(collected(first, pieces, len(asks)))
    return JSONResponse(whole(head, answers), headers=headers)


def asks_of(body: ChatRequest, gate: Gate) -> list[Ask]:
    """One ask per choice; unseeded ones differ by chance, seeded ones by their number."""
    seed = secrets.randbits(31) if body.seed is None else body.seed & 0x7FFFFFFF
    limits = gate.settings.limits
    param = "max_completion_tokens" if body.max_completion_tokens else "max_tokens"
    gate.check_length(body.longest, param)
    ask = Ask(
        messages=[message.model_dump(exclude_none=True) for message in body.messages],
        sampling=body.sampling(seed),
        max_new_tokens=body.longest,
        stop=body.stops,
        schema=schema_of(body.response_format, limits),
        logprobs=body.wanted_logprobs,
        tools=body.wanted_tools,
        shorten=body.truncation == "auto",
    )
    return [replace(ask, sampling=body.sampling(seed + i)) for i in range(body.n or 1)]


@dataclass(frozen=True, slots=True)
class Head:
    """What every part of one answer carries."""

    model: Served
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def frame(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model.name,
            "system_fingerprint": f"fp_{self.model.digest[:12]}" if self.model.digest else None,
            "choices": choices,
        }


async def chunks(
    head: Head,
    first: tuple[int, Piece],
    pieces: AsyncGenerator[tuple[int, Piece]],
    num_choices: int,
    with_usage: bool,
) -> AsyncGenerator[str]:
    """The data of each event; an error is the last one, and is not followed by `[DONE]`."""
    extra: dict[str, Any] = {"usage": None} if with_usage else {}
    usages = [Usage()] * num_choices
    called = Counter[int]()

    def chunk(choice: int, delta: dict[str, Any], finish: str | None, piece: Piece) -> str:
        row = {
            "index": choice,
            "delta": delta,
            "logprobs": {"content": [said_row(s) for s in piece.said], "refusal": None}
            if piece.said
            else None,
            "finish_reason": finish,
        }
        return _dump({**head.frame("chat.completion.chunk", [row]), **extra, **notice_of(piece)})

    choice, piece = first
    yield chunk(choice, {"role": "assistant", "content": ""}, None, piece)
    async for choice, piece in pieces:
        usages[choice] = piece.usage
        if piece.ending is Ending.FAILED:
            raise EngineError(piece.detail)
        if piece.ending is None and not (piece.text or piece.said or piece.calls):
            yield chunk(choice, {"role": "assistant", "content": ""}, None, piece)
            continue
        if piece.text or piece.said:
            yield chunk(choice, {"content": piece.text}, None, piece)
        for call in piece.calls:
            row = {"index": called[choice], **call_row(call)}
            called[choice] += 1
            yield chunk(choice, {"tool_calls": [row]}, None, Piece())
        if piece.ending is not None:
            finish = finish_of(piece.ending, bool(called[choice]))
            yield chunk(choice, {}, finish, Piece(notice=piece.notice))
    if with_usage:
        row = head.frame("chat.completion.chunk", [])
        yield _dump({**row, "usage": usage_row(usages)})


def whole(head: Head, answers: list[list[Piece]]) -> dict[str, Any]:
    """All choices in one object. Raises EngineError where one failed."""
    choices: list[dict[str, Any]] = []
    for index, pieces in enumerate(answers):
        last = pieces[-1]
        if last.ending is None or last.ending is Ending.FAILED:
            raise EngineError(last.detail or "the answer broke off")
        said = [said_row(s) for piece in pieces for s in piece.said]
        text = "".join(piece.text for piece in pieces)
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if calls := [call_row(call) for piece in pieces for call in piece.calls]:
            message |= {"content": text or None, "tool_calls": calls}
        choices.append(
            {
                "index": index,
                "message": message,
                "logprobs": {"content": said, "refusal": None} if said else None,
                "finish_reason": finish_of(last.ending, bool(calls)),
            }
        )
    row = head.frame("chat.completion", choices)
    row["usage"] = usage_row([pieces[-1].usage for pieces in answers])
    noticed = (piece for pieces in answers for piece in pieces if piece.notice)
    return {**row, **notice_of(next(noticed, Piece()))}


def finish_of(ending: Ending, has_called: bool) -> str:
    """OpenAI's word for how an answer ended."""
    return "tool_calls" if has_called and ending is Ending.STOP else FINISH[ending]


def call_row(call: Call) -> dict[str, Any]:
    return {
        "id": f"call_{uuid.uuid4().hex[:24]}",
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }


def usage_row(usages: list[Usage]) -> dict[str, int]:
    """The prompt counts once, however many choices were made of it."""
    prompt = max(usage.prompt for usage in usages)
    completion = sum(usage.completion for usage in usages)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


def said_row(said: Said) -> dict[str, Any]:
    top = [{"token": t, "bytes": list(b), "logprob": v} for t, b, v in said.top]
    return {
        "token": said.text,
        "bytes": list(said.bytes),
        "logprob": said.logprob,
        "top_logprobs": top,
    }


def notice_of(piece: Piece) -> dict[str, Any]:
    return {"notice": piece.notice} if piece.notice else {}


def _dump(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False, separators=(",", ":"))
