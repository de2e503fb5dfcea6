"""A responder for callers without an event loop: the terminal, comparisons, `timechat.chat`."""

from __future__ import annotations

import asyncio
import queue
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import aclosing

from timechat.conversation import Message
from timechat.engine.protocol import Ending, EngineError, Sampling
from timechat.engine.responder import Ask, Piece, Responder


class BlockingResponder:
    """Runs a responder on an event loop in a thread of its own.

    `ending` tells how the last answer ended, `notice` what was done to its conversation. `close`
    it, or use it in a `with` block; one that is merely forgotten is closed when it is collected.
    """

    def __init__(self, responder: Responder) -> None:
        self.responder = responder
        self.ending: Ending | None = None
        self.notice = ""
        self._loop = asyncio.new_event_loop()
        thread = threading.Thread(target=_turn, args=(self._loop,), daemon=True)
        thread.start()
        # What it starts, such as a child process, must not outlive a caller who forgot to close.
        self._end = weakref.finalize(self, _end, responder, self._loop, thread)
        try:
            asyncio.run_coroutine_threadsafe(responder.start(), self._loop).result()
        except BaseException:
            self._end()
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
        self._end()

    def __enter__(self) -> BlockingResponder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _turn(loop: asyncio.AbstractEventLoop) -> None:
    """Run the loop until it is stopped."""
    try:
        loop.run_forever()
    finally:
        loop.close()


def _end(responder: Responder, loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    """Stop the responder, then its loop. Knows nothing of the object, so that it can be collected.

    Where the collector happens to run on the loop's own thread, that thread cannot wait for itself:
    the loop then ends in its own time.
    """

    work = asyncio.run_coroutine_threadsafe(responder.stop(), loop)
    work.add_done_callback(lambda _: loop.call_soon_threadsafe(loop.stop))
    if threading.current_thread() is not thread:
        thread.join()
        work.result()
