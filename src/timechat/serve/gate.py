"""One request on its way: who asks, of which model, within which bounds, still listening?"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect

from timechat.engine.responder import Ask, Piece
from timechat.serve.conversations import Conversations
from timechat.serve.errors import ApiError
from timechat.serve.keys import Caller, Keys
from timechat.serve.metrics import Metrics
from timechat.serve.registry import Registry, Served
from timechat.serve.settings import Settings
from timechat.serve.sse import Pieces, merged

T = TypeVar("T")
# How often a running answer looks whether its key is still valid, in seconds.
RECHECK_S = 0.25


class Gate:
    """What a route needs to know about its request. Made by `gate_of`."""

    def __init__(self, request: Request) -> None:
        state = request.app.state
        self.request = request
        self.settings: Settings = state.settings
        self.registry: Registry = state.registry
        self.keys: Keys = state.keys
        self.caller: Caller = request.state.caller
        self._running: Counter[Caller] = state.running

    def model(self, name: str) -> Served:
        if self.registry.draining:
            raise ApiError(503, "the server is shutting down", code="draining", retry_after_s=5)
        return self.registry.get(name, self.caller.project)

    async def find(self, name: str) -> Served:
        """The model of that name, loaded first where it waits on the shelf."""
        if self.registry.shelf is not None and not self.registry.draining:
            await self.registry.shelf.fetch(name, self.caller.project)
        return self.model(name)

    def check_length(self, tokens: int | None, param: str) -> None:
        """Raises ApiError 400 for an answer longer than this server gives."""
        most = self.settings.limits.answer_tokens
        if tokens is not None and tokens > most:
            raise ApiError(
                400, f"at most {most} tokens can be asked for, not {tokens}", param=param
            )

    def answers(self, model: Served, asks: Sequence[Ask]) -> Pieces:
        """The answers to `asks`, counted and bounded; interrupted by the next of a conversation."""
        most = self.settings.limits.per_key
        if len(asks) > most:
            raise ApiError(400, f"{len(asks)} answers at once; a key may have {most}", param="n")
        metrics: Metrics = self.request.app.state.metrics
        runs = [metrics.timed(model, model.responder.reply(ask)) for ask in asks]
        pieces = self.watched(merged(runs), len(asks))
        name = self.request.headers.get("x-conversation-id", "")
        if not name:
            return pieces
        if len(name) > 128:
            raise ApiError(400, "x-conversation-id is longer than 128 characters")
        conversations: Conversations = self.request.app.state.conversations
        return conversations.sole(self.caller.project, name, pieces)

    async def watched(self, pieces: Pieces, count: int) -> Pieces:
        """`pieces` of `count` answers within the caller's bounds; ends when time or key is gone."""
        limits = self.settings.limits
        if self._running[self.caller] + count > limits.per_key:
            raise ApiError(
                429,
                f"a key may have {limits.per_key} answers running",
                code="rate_limit_exceeded",
                retry_after_s=1.0,
            )
        self._running[self.caller] += count
        try:
            async with aclosing(pieces):
                async for item in self._bounded(pieces):
                    yield item
        finally:
            self._running[self.caller] -= count
            if not self._running[self.caller]:
                del self._running[self.caller]

    async def _bounded(self, pieces: Pieces) -> Pieces:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.settings.limits.seconds
        upcoming: asyncio.Future[Any] | None = None
        try:
            while True:
                upcoming = upcoming or asyncio.ensure_future(anext(pieces, None))
                done, _ = await asyncio.wait({upcoming}, timeout=RECHECK_S)
                if not self.keys.holds(self.caller):
                    raise ApiError(401, "the API key was revoked", code="invalid_api_key")
                if loop.time() > deadline:
                    raise ApiError(
                        503, "the answer took too long", code="timeout", retry_after_s=None
                    )
                if done:
                    item, upcoming = upcoming.result(), None
                    if item is None:
                        return
                    yield item
        finally:
            if upcoming is not None:
                upcoming.cancel()
                await asyncio.gather(upcoming, return_exceptions=True)

    async def first(self, pieces: Pieces) -> tuple[int, Piece]:
        """The first piece, or the refusal that came in its place."""
        try:
            return await anext(pieces)
        except BaseException:
            await pieces.aclose()
            raise

    async def attended(self, answer: Coroutine[Any, Any, T]) -> T:
        """The whole answer, given up when the client closes its connection meanwhile."""
        work = asyncio.ensure_future(answer)
        gone = asyncio.ensure_future(self._gone())
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                raise ClientDisconnect
            return work.result()
        finally:
            for task in (work, gone):
                task.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)

    async def _gone(self) -> None:
        while (await self.request.receive())["type"] != "http.disconnect":
            pass


def gate_of(request: Request) -> Gate:
    return Gate(request)
