"""A responder for callers without an event loop: the terminal, comparisons, `timechat.chat`."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Iterator, Sequence
from contextlib import aclosing

from timechat.conversation import Message
from timechat.engine.protocol import Ending, EngineError, Sampling
from timechat.engine.responder import Ask, Piece, Responder


class BlockingResponder:
    """Runs a responder on an event loop in a thread of its own.

    `ending` tells how the last answer ended, `notice` what was done to its conversation.
    """

    def __init__(self, responder: Responder) -> None:
        self.responder = responder
        self.ending: Ending | None = None
        self.notice = ""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        try:
            asyncio.run_coroutine_threadsafe(responder.start(), self._loop).result()
        except BaseException:
            self._end_loop()
            raise

    def reply(self, messages: Sequence[Message], sampling: Sampling) -> Iterator[str]:
        """Yield the answer in pieces of whole characters; closing the iterator stops it.

        Raises UserError for a conversation that cannot be answered, EngineError where the answer
        broke off.
        """
        ask = Ask(
            [message.to_dict() for message in messages],
            sampling=sampling,
            max_new_tokens=sampling.max_new_tokens,
        )
        for piece in self.pieces(ask):
            if piece.text:
                yield piece.text

    def pieces(self, ask: Ask) -> Iterator[Piece]:
        self.ending = Ending.CANCELLED
        inbox: queue.SimpleQueue[Piece | BaseException | None] = queue.SimpleQueue()

        async def pump() -> None:
            try:
                async with aclosing(self.responder.reply(ask)) as pieces:
                    async for piece in pieces:
                        inbox.put(piece)
                inbox.put(None)
            except asyncio.CancelledError:
                raise
            except BaseException as error:
                inbox.put(error)

        work = asyncio.run_coroutine_threadsafe(pump(), self._loop)
        try:
            while (item := inbox.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                self.notice = item.notice or self.notice
                if item.ending is Ending.FAILED:
                    self.ending = Ending.FAILED
                    raise EngineError(f"the answer broke off: {item.detail}")
                if item.ending is not None:
                    self.ending = item.ending
                yield item
        finally:
            work.cancel()

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self.responder.stop(), self._loop).result()
        self._end_loop()

    def __enter__(self) -> BlockingResponder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _end_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
