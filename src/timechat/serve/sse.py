"""Streams: several answers as one, and one as server-sent events."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.responses import StreamingResponse

from timechat.engine.responder import Piece
from timechat.serve.errors import from_engine

log = logging.getLogger("timechat.serve")
T = TypeVar("T")
Pieces = AsyncGenerator[tuple[int, Piece]]
# What the schema says of a route that answers in one object, or in events where `stream` is set.
WHOLE_OR_STREAMED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The answer, or with `stream` its parts as they come.",
        "content": {"application/json": {}, "text/event-stream": {}},
    }
}


class EventStream(StreamingResponse):
    """`text/event-stream`. Ends in `[DONE]`, or in an error event and nothing after it, so that a
    client that overlooks the error cannot take the answer for a whole one."""

    def __init__(self, data: AsyncGenerator[str], headers: Mapping[str, str]) -> None:
        super().__init__(
            _events(data),
            media_type="text/event-stream",
            headers={**headers, "cache-control": "no-cache", "x-accel-buffering": "no"},
        )


async def _events(data: AsyncGenerator[str]) -> AsyncGenerator[str]:
    async with aclosing(data):
        try:
            async for row in data:
                yield f"data: {row}\n\n"
        except Exception as error:
            refused = from_engine(error)
            if refused.status == 500:
                log.exception("an answer failed")
            yield f"data: {json.dumps(refused.body)}\n\n"
        else:
            yield "data: [DONE]\n\n"


async def merged(answers: Sequence[AsyncGenerator[Piece]]) -> Pieces:
    """Pieces of several answers as they come, each with its answer's number."""
    if len(answers) == 1:
        async with aclosing(answers[0]) as only:
            async for piece in only:
                yield 0, piece
        return
    queue: asyncio.Queue[tuple[int, Piece] | Exception] = asyncio.Queue()

    async def run(number: int, answer: AsyncGenerator[Piece]) -> None:
        try:
            async with aclosing(answer):
                async for piece in answer:
                    queue.put_nowait((number, piece))
        except Exception as error:
            queue.put_nowait(error)

    tasks = [asyncio.create_task(run(i, answer)) for i, answer in enumerate(answers)]
    left = len(answers)
    try:
        while left:
            item = await queue.get()
            if isinstance(item, Exception):
                raise item
            left -= item[1].ending is not None
            yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def collected(first: tuple[int, Piece], pieces: Pieces, count: int) -> list[list[Piece]]:
    """All pieces of each of `count` answers."""
    answers: list[list[Piece]] = [[] for _ in range(count)]
    answers[first[0]].append(first[1])
    async with aclosing(pieces):
        async for number, piece in pieces:
            answers[number].append(piece)
    return answers
