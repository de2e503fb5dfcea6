"""The seam of generation: token ids in, deltas out, each stream ending in an `Ending`.

Two shapes of one thing. A `Core` lives where the weights are: it is stepped, one token of every
running request at a time. An `Engine` is what the rest of the house holds: asynchronous, and
usually a `Core` in a process of its own (`process.py`). Text, chat formats and stop strings are
`responder`'s.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from timechat.errors import TimeChatError, UserError


class Ending(Enum):
    """How an answer ended. Never a bool: a full window and a stop token are different news."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Delta:
    """The next token, or the ending of the stream (then `token` is None).

    `logprob` and `top` (other tokens with theirs, likeliest first) are in nats, and there only
    when asked for. `detail` says why a stream failed, and `is_misfit` that it did so because no
    answer can be held to the request's schema: no fault of the engine, and no hope in asking again.
    """

    token: int | None
    ending: Ending | None = None
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    detail: str = ""
    is_misfit: bool = False


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to choose the next token. Temperature 0 takes the likeliest."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    max_new_tokens: int = 256
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0


@dataclass(frozen=True, slots=True)
class Request:
    """One continuation asked for. `schema` is a JSON schema (as text) that the answer obeys;
    `logprobs` is None for none, else how many likely tokens to name beside the chosen one."""

    prompt: Sequence[int]
    sampling: Sampling = field(default_factory=Sampling)
    stop: frozenset[int] = frozenset()
    schema: str | None = None
    logprobs: int | None = None

    def room(self, window: int) -> int:
        """The tokens that it may be answered with: what was asked for, or what the window leaves.

        Raises ValueError where there is nothing to continue.
        """
        if not self.prompt:
            raise ValueError("an empty prompt cannot be continued")
        return min(self.sampling.max_new_tokens, window - len(self.prompt))


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an engine can do. A caller refuses beforehand what is not here.

    `window` and `kv_tokens` are in tokens: the longest conversation, and what all running ones
    may hold together. `logprobs` is the most likely tokens that can be named (None: no
    log-probabilities at all). `kv_bytes` is what those may take beside what the engine holds once
    it is loaded (None: it cannot say, and its memory is not watched).
    """

    engine: str
    window: int
    kv_tokens: int
    logprobs: int | None = None
    schema: bool = False
    prefix_cache: bool = False
    note: str = ""
    kv_bytes: int | None = None


class EngineError(TimeChatError):
    """An engine is gone, draining or broken; the request was not (wholly) answered."""


class SchemaError(UserError):
    """A schema that answers cannot be held to."""

    param = "response_format.json_schema.schema"


class Core(Protocol):
    """A stepped engine. Not thread-safe; whoever owns it calls it from one thread."""

    capabilities: Capabilities

    def add(self, key: int, request: Request) -> None:
        """Take a request in; its deltas come out of `step` under `key`.

        Raises ValueError, or SchemaError where no answer can be held to its schema.
        """
        ...

    def cancel(self, key: int) -> None:
        """Free what the request holds before the next step. Unknown keys are left alone."""
        ...

    def step(self) -> list[tuple[int, Delta]]:
        """Advance all running requests; an ending is the last delta of its key."""
        ...

    @property
    def busy(self) -> bool: ...


class Engine(Protocol):
    """Anything that continues token ids, from an event loop.

    `capabilities` may be read once `start` has returned. Closing the generator of `stream`
    cancels it; a stream always ends in a delta with an ending unless it was closed.
    """

    @property
    def capabilities(self) -> Capabilities: ...

    @property
    def running(self) -> int:
        """Requests whose ending has not come yet; cancelled ones count until they are freed."""
        ...

    @property
    def ready(self) -> bool: ...

    async def start(self) -> None: ...

    def stream(self, request: Request) -> AsyncGenerator[Delta]: ...

    async def drain(self, deadline_s: float) -> bool:
        """Take no more requests and wait for the running ones; whether all ended in time."""
        ...

    async def stop(self) -> None: ...
