"""`/v1/completions`: bare text continued, without a chat format."""

from __future__ import annotations

import json
import secrets
import time
import uuid
from collections.abc import AsyncGenerator
from itertools import accumulate
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from timechat.engine.protocol import Ending, EngineError
from timechat.engine.responder import Ask, Piece, Usage
from timechat.serve.chat import FINISH, usage_row
from timechat.serve.gate import Gate, gate_of
from timechat.serve.sse import WHOLE_OR_STREAMED, EventStream, Pieces, collected
from timechat.serve.wire import CompletionRequest

router = APIRouter(tags=["completions"])
# OpenAI's own default here; chat answers have no such bound.
DEFAULT_TOKENS = 16


@router.post("/v1/completions", responses=WHOLE_OR_STREAMED)
async def create_completion(body: CompletionRequest, request: Request) -> Response:
    """Continue one or several prompts."""
    gate = gate_of(request)
    body.check()
    model = await gate.find(body.model)
    asks = asks_of(body, gate)
    pieces = gate.answers(model, asks)
    head = {
        "id": f"cmpl-{uuid.uuid4().hex}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": model.name,
    }
    headers = body.headers
    first = await gate.first(pieces)
    if body.stream:
        events = chunks(head, first, pieces, len(asks), body.wants_usage, body.n or 1)
        return EventStream(events, headers)
    answers = await gate.attended(collected(first, pieces, len(asks)))
    for answer in answers:
        if answer[-1].ending in (None, Ending.FAILED):
            raise EngineError(answer[-1].detail or "the answer broke off")
    choices = [
        choice_row(i, "".join(p.text for p in answer), answer, answer[-1].ending)
        for i, answer in enumerate(answers)
    ]
    usage = total_usage([answer[-1].usage for answer in answers], body.n or 1)
    return JSONResponse({**head, "choices": choices, "usage": usage}, headers=headers)


def asks_of(body: CompletionRequest, gate: Gate) -> list[Ask]:
    """An ask for each prompt and choice, prompts first."""
    seed = secrets.randbits(31) if body.seed is None else body.seed & 0x7FFFFFFF
    longest = DEFAULT_TOKENS if body.max_tokens is None else body.max_tokens
    gate.check_length(longest, "max_tokens")
    return [
        Ask(
            prompt=prompt,
            sampling=body.sampling(seed + choice),
            max_new_tokens=longest,
            stop=body.stops,
            logprobs=body.logprobs,
        )
        for prompt in body.prompts
        for choice in range(body.n or 1)
    ]


async def chunks(
    head: dict[str, Any],
    first: tuple[int, Piece],
    pieces: Pieces,
    num_choices: int,
    with_usage: bool,
    n: int,
) -> AsyncGenerator[str]:
    """The data of each event. `finish_reason` is null until the last one of a choice, as OpenAI's
    own service has it; the types of its client forget that, and refuse it where they are strict
    (docs/serving.md)."""
    extra: dict[str, Any] = {"usage": None} if with_usage else {}
    usages = [Usage()] * num_choices
    offsets = [0] * num_choices
    usages[first[0]] = first[1].usage
    async for choice, piece in pieces:
        usages[choice] = piece.usage
        if piece.ending is Ending.FAILED:
            raise EngineError(piece.detail)
        if piece.text or piece.said or piece.ending is not None:
            row = choice_row(choice, piece.text, [piece], piece.ending, offsets[choice])
            offsets[choice] += sum(len(one.text) for one in piece.said)
            yield json.dumps({**head, "choices": [row], **extra}, ensure_ascii=False)
    if with_usage:
        yield json.dumps({**head, "choices": [], "usage": total_usage(usages, n)})


def choice_row(
    index: int, text: str, pieces: list[Piece], ending: Ending | None, offset: int = 0
) -> dict[str, Any]:
    """A choice, or a part of one that begins `offset` characters into its tokens' text."""
    said = [one for piece in pieces for one in piece.said]
    logprobs: dict[str, Any] | None = None
    if said:
        offsets = [*accumulate((len(one.text) for one in said), initial=offset)][:-1]
        logprobs = {
            "tokens": [s.text for s in said],
            "token_logprobs": [s.logprob for s in said],
            "top_logprobs": [{t: v for t, _, v in s.top} for s in said],
            "text_offset": offsets,
        }
    finish = FINISH[ending] if ending is not None else None
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}


def total_usage(usages: list[Usage], n: int) -> dict[str, int]:
    """Each prompt counts once, its choices all."""
    parts = [usage_row(usages[i : i + n]) for i in range(0, len(usages), n)]
    return {name: sum(part[name] for part in parts) for name in parts[0]}
