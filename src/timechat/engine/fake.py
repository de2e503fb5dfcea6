"""A scripted engine: whole servers are tested with it in milliseconds, failures included."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence

from timechat.engine.occupancy import Occupancy
from timechat.engine.protocol import Capabilities, Delta, Ending, EngineError, Request

# What a step of a leaking core keeps.
LEAK_BYTES = 2 << 20
Script = Callable[[Request], Sequence[int]]


def echo(request: Request) -> Sequence[int]:
    """Say the prompt again."""
    return request.prompt


class FakeEngine:
    """Answers each request with the tokens of `script`, one every `interval_s`.

    `fails_after` ends each stream FAILED after so many tokens, and `misfit` says that those with a
    schema fail of it. `requests` and `cancelled` keep what was asked, for tests to look at.
    """

    def __init__(
        self,
        script: Script = echo,
        *,
        first_s: float = 0.0,
        interval_s: float = 0.0,
        fails_after: int | None = None,
        misfit: bool = False,
        window: int = 4096,
        kv_tokens: int = 1 << 20,
        logprobs: int | None = 5,
        schema: bool = True,
    ) -> None:
        self.script = script
        self.first_s = first_s
        self.interval_s = interval_s
        self.fails_after = fails_after
        self.misfit = misfit
        self.requests: list[Request] = []
        self.cancelled: list[Request] = []
        self.ready = False
        self._draining = False
        self._occupancy = Occupancy()
        self.capabilities = Capabilities(
            "fake", window, kv_tokens, logprobs=logprobs, schema=schema, prefix_cache=True
        )

    @property
    def running(self) -> int:
        return self._occupancy.count

    async def start(self) -> None:
        self.ready = True

    async def stream(self, request: Request) -> AsyncGenerator[Delta]:
        if self._draining or not self.ready:
            raise EngineError("the engine is not taking requests")
        self.requests.append(request)
        ended = False
        with self._occupancy.inside():
            try:
                async for delta in self._deltas(request):
                    ended = delta.ending is not None
                    yield delta
            finally:
                if not ended:
                    self.cancelled.append(request)

    async def _deltas(self, request: Request) -> AsyncGenerator[Delta]:
        await asyncio.sleep(self.first_s)
        room = request.room(self.capabilities.window)
        for place, token in enumerate(self.script(request)):
            if self.fails_after is not None and place >= self.fails_after:
                misfit = self.misfit and request.schema is not None
                yield Delta(None, Ending.FAILED, detail="as scripted", is_misfit=misfit)
                return
            if token in request.stop:
                break
            if place >= room:
                yield Delta(None, Ending.LENGTH)
                return
            asked = request.logprobs
            top = tuple((token + i, -0.5 - i) for i in range(asked or 0))
            yield Delta(token, logprob=None if asked is None else -0.5, top=top)
            await asyncio.sleep(self.interval_s)
        yield Delta(None, Ending.STOP)

    async def drain(self, deadline_s: float) -> bool:
        self._draining = True
        return await self._occupancy.emptied(deadline_s)

    async def stop(self) -> None:
        self.ready = False


class ScriptedCore:
    """A core that counts upwards from the prompt's length: a child process without weights.

    A prompt that begins with 13 makes it step slowly, as a large model would; one that begins with
    14 also makes it grow with every step, as a leak would.
    """

    def __init__(self) -> None:
        self.capabilities = Capabilities("scripted", 512, 1 << 16, prefix_cache=True, kv_bytes=0)
        self._leaked: list[bytes] = []
        self._running: dict[int, tuple[Request, int]] = {}

    @property
    def busy(self) -> bool:
        return bool(self._running)

    def add(self, key: int, request: Request) -> None:
        self._running[key] = (request, 0)

    def cancel(self, key: int) -> None:
        self._running.pop(key, None)

    def step(self) -> list[tuple[int, Delta]]:
        out: list[tuple[int, Delta]] = []
        slow = [r.prompt[0] for r, _ in self._running.values() if r.prompt[0] in (13, 14)]
        time.sleep(0.02 if slow else 0.0)
        self._leaked += [b"x" * LEAK_BYTES for first in slow if first == 14]
        for key, (request, count) in list(self._running.items()):
            token = len(request.prompt) + count
            room = min(request.sampling.max_new_tokens, 512 - len(request.prompt))
            if token in request.stop or count >= room:
                out.append((key, Delta(None, Ending.STOP if count < room else Ending.LENGTH)))
                del self._running[key]
            else:
                out.append((key, Delta(token)))
                self._running[key] = (request, count + 1)
        return out
