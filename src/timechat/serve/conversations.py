"""Interrupting: a new message of a conversation closes the answer that still runs in it.

A client names its conversation in the `x-conversation-id` header. The old stream ends at once with
what it has delivered; nothing of it is said afterwards, so the client's history (what it received)
is the history.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress

from timechat.engine.protocol import Ending
from timechat.engine.responder import Piece
from timechat.serve.sse import Pieces


class Conversations:
    """The running answer of each conversation, by project and the client's name for it."""

    def __init__(self) -> None:
        self._running: dict[tuple[str, str], asyncio.Event] = {}

    async def sole(
        self, project: str, name: str, pieces: Pieces
    ) -> AsyncGenerator[tuple[int, Piece]]:
        """`pieces`, ending CANCELLED as soon as the same conversation asks anew."""
        key = (project, name)
        if (former := self._running.get(key)) is not None:
            former.set()
        asked_anew = self._running[key] = asyncio.Event()
        watch = asyncio.ensure_future(asked_anew.wait())
        last: dict[int, Piece] = {}
        try:
            async with aclosing(pieces):
                while True:
                    upcoming = asyncio.ensure_future(anext(pieces, None))
                    await asyncio.wait({upcoming, watch}, return_when=asyncio.FIRST_COMPLETED)
                    if asked_anew.is_set():
                        upcoming.cancel()
                        with suppress(asyncio.CancelledError, Exception):
                            await upcoming
                        break
                    if (item := upcoming.result()) is None:
                        return
                    last[item[0]] = item[1]
                    yield item
            for choice, piece in last.items():
                if piece.ending is None:
                    yield (
                        choice,
                        Piece(ending=Ending.CANCELLED, usage=piece.usage, notice="interrupted"),
                    )
        finally:
            watch.cancel()
            if self._running.get(key) is asked_anew:
                del self._running[key]
