"""Who may start now: places by key-value budget, a short queue, and an honest refusal.

An engine whose cache runs out drops every conversation it holds, so each is let in with its worst
case (prompt and the longest answer) and waits where that does not fit.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager

from timechat.errors import TimeChatError

# Weight of the newest answer's duration in the running mean that `retry_after_s` is made from.
_FRESHNESS = 0.2


class BusyError(TimeChatError):
    """No place, and the queue is full; `retry_after_s` is when trying again makes sense."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__(f"all places are taken; try again in {retry_after_s:.0f} s")
        self.retry_after_s = retry_after_s


class Admission:
    """First come, first served, under a budget of tokens."""

    def __init__(self, max_waiting: int, budget: int = 0) -> None:
        self.max_waiting = max_waiting
        self.budget = budget
        self.held = 0
        self.running = 0
        self.arriving = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._mean_s = 1.0

    def open(self, budget: int) -> None:
        """Set the budget, once the engine has told it."""
        self.budget = budget

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @contextmanager
    def arrival(self) -> Generator[None]:
        """Be on the way to a place: what asks for one is read first, which takes time, too.

        Raises BusyError at once where all who wait and are on their way would overfill the queue.
        """
        if self.waiting >= self.max_waiting or self.waiting + self.arriving > self.max_waiting:
            raise self._busy()
        self.arriving += 1
        try:
            yield
        finally:
            self.arriving -= 1

    @asynccontextmanager
    async def place(self, tokens: int) -> AsyncGenerator[None]:
        """Hold `tokens` of the budget. Raises BusyError at once when the queue is full."""
        tokens = min(tokens, self.budget)
        await self._enter(tokens)
        started = time.monotonic()
        try:
            yield
        finally:
            self._mean_s += _FRESHNESS * (time.monotonic() - started - self._mean_s)
            self._leave(tokens)

    async def _enter(self, tokens: int) -> None:
        if not self._waiting and self.held + tokens <= self.budget:
            self._take(tokens)
            return
        if len(self._waiting) >= self.max_waiting:
            raise self._busy()
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (tokens, turn)
        self._waiting.append(entry)
        try:
            await turn
        except asyncio.CancelledError:
            if entry in self._waiting:
                self._waiting.remove(entry)
            else:  # let in and gone at the same moment
                self._leave(tokens)
            self._wake()
            raise

    def _busy(self) -> BusyError:
        return BusyError(max(1.0, self._mean_s * (1 + self.waiting) / max(1, self.running)))

    def _take(self, tokens: int) -> None:
        self.held += tokens
        self.running += 1

    def _leave(self, tokens: int) -> None:
        self.held -= tokens
        self.running -= 1
        self._wake()

    def _wake(self) -> None:
        while self._waiting and self.held + self._waiting[0][0] <= self.budget:
            tokens, turn = self._waiting.popleft()
            if not turn.done():
                self._take(tokens)
                turn.set_result(None)
