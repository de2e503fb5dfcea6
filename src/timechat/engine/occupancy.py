"""How many are inside, and waiting until nobody is: what draining means, for whoever drains."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from contextlib import contextmanager


class Occupancy:
    """A count that can be waited for to be zero."""

    def __init__(self) -> None:
        self.count = 0
        self._empty = asyncio.Event()
        self._empty.set()

    def enter(self) -> None:
        self.count += 1
        self._empty.clear()

    def leave(self) -> None:
        self.count -= 1
        if not self.count:
            self._empty.set()

    @contextmanager
    def inside(self) -> Generator[None]:
        self.enter()
        try:
            yield
        finally:
            self.leave()

    async def emptied(self, deadline_s: float) -> bool:
        """Wait until nobody is inside; whether that came within `deadline_s`."""
        try:
            await asyncio.wait_for(self._empty.wait(), deadline_s)
        except TimeoutError:
            return False
        return True
