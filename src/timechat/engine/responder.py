"""The upper seam: messages in, pieces of text out.

A `Responder` is an engine with a chat format around it, or an endpoint elsewhere. What every
answer needs is here once, whichever engine works below: the template, whole characters, stop
strings, token counts, admission. HTTP and conversations that last are built on top.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from tokenizers import Tokenizer

from timechat.engine.admission import Admission
from timechat.engine.protocol import (
    Capabilities,
    Delta,
    Ending,
    Engine,
    EngineError,
    Request,
    Sampling,
)
from timechat.engine.text import TextStream
from timechat.errors import UserError

# Room that a conversation must leave for an answer when no length was asked for.
LEAST_ANSWER = 8


@dataclass(frozen=True, slots=True)
class Ask:
    """What is asked of a responder: a conversation, or a bare `prompt` to continue.

    `messages` are in OpenAI's shape. `max_new_tokens` None is whatever the window leaves;
    `shorten` lets whole old turns be left out of a conversation that outgrew the window.
    """

    messages: Sequence[Mapping[str, Any]] = ()
    prompt: str | Sequence[int] | None = None
    sampling: Sampling = field(default_factory=Sampling)
    max_new_tokens: int | None = None
    stop: tuple[str, ...] = ()
    schema: str | None = None
    logprobs: int | None = None
    tools: tuple[Mapping[str, Any], ...] = ()
    shorten: bool = False


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens read and said."""

    prompt: int = 0
    completion: int = 0


@dataclass(frozen=True, slots=True)
class Said:
    """One token of an answer as text, with its log-probability and the likeliest others."""

    text: str
    bytes: bytes
    logprob: float
    top: tuple[tuple[str, bytes, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of an answer. The first one of a stream is empty: the conversation was taken in.
    The last one has the `ending`."""

    text: str = ""
    said: tuple[Said, ...] = ()
    ending: Ending | None = None
    usage: Usage = Usage()
    notice: str = ""
    detail: str = ""


class ContextTooLongError(UserError):
    """The conversation does not leave room for the answer that was asked for."""

    def __init__(self, prompt: int, answer: int, window: int) -> None:
        super().__init__(
            f"This model's maximum context length is {window} tokens, and {prompt} in the messages"
            f" with {answer} for the answer make {prompt + answer}. Shorten the conversation or"
            " ask for fewer tokens."
        )


class UnsupportedError(UserError):
    """The engine cannot do what `param` asks."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(message)
        self.param = param


class Scribe(Protocol):
    """Renders and tokenises, off the event loop."""

    stop_ids: frozenset[int]

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def prompt(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]
    ) -> list[int]: ...

    async def encode(self, text: str) -> list[int]: ...


class Responder(Protocol):
    """Anything that answers conversations."""

    @property
    def capabilities(self) -> Capabilities: ...

    @property
    def ready(self) -> bool: ...

    async def start(self) -> None: ...

    def reply(self, ask: Ask) -> AsyncGenerator[Piece]:
        """Yield an empty piece once the ask is taken in, then the answer; closing cancels.

        Raises ContextTooLongError, UnsupportedError, BusyError or EngineError before the first
        piece.
        """
        ...

    async def drain(self, deadline_s: float) -> bool: ...

    async def stop(self) -> None: ...


class LocalResponder:
    """One engine with one chat format."""

    def __init__(
        self, engine: Engine, scribe: Scribe, tokenizer: Tokenizer, max_waiting: int = 64
    ) -> None:
        self.engine = engine
        self.scribe = scribe
        self.tokenizer = tokenizer
        self.admission = Admission(max_waiting)
        self._running = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def capabilities(self) -> Capabilities:
        return self.engine.capabilities

    @property
    def ready(self) -> bool:
        return self.engine.ready

    async def start(self) -> None:
        await self.scribe.start()
        await self.engine.start()
        self.admission.open(self.capabilities.kv_tokens)

    async def drain(self, deadline_s: float) -> bool:
        """Let what was asked end, what waits for a place too; whether all of it did in time."""
        begun = time.monotonic()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), deadline_s)
        return await self.engine.drain(max(0.0, deadline_s - (time.monotonic() - begun)))

    async def stop(self) -> None:
        await self.engine.stop()
        await self.scribe.stop()

    async def reply(self, ask: Ask) -> AsyncGenerator[Piece]:
        if not self.engine.ready:
            raise EngineError("the engine is not taking requests")
        self._running += 1
        self._idle.clear()
        try:
            async with contextlib.aclosing(self._reply(ask)) as pieces:
                async for piece in pieces:
                    yield piece
        finally:
            self._running -= 1
            if not self._running:
                self._idle.set()

    async def _reply(self, ask: Ask) -> AsyncGenerator[Piece]:
        self._check(ask)
        prompt, notice = await self._prompt(ask)
        room = self._room(ask, len(prompt))
        request = Request(
            prompt,
            replace(ask.sampling, max_new_tokens=room),
            self.scribe.stop_ids,
            ask.schema,
            ask.logprobs,
        )
        async with self.admission.place(len(prompt) + room):
            yield Piece(usage=Usage(len(prompt)), notice=notice)
            async for piece in self._answer(request, ask.stop):
                yield piece

    async def _answer(self, request: Request, stop: tuple[str, ...]) -> AsyncGenerator[Piece]:
        text = TextStream(self.tokenizer, stop)
        count = 0
        deltas = self.engine.stream(request)
        try:
            async for delta in deltas:
                if delta.ending is not None:
                    ending, rest = delta.ending, text.end()
                    if text.stopped:  # what was held back turned out to be a stop string
                        ending = Ending.STOP
                    usage = Usage(len(request.prompt), count)
                    yield Piece(rest, ending=ending, usage=usage, detail=delta.detail)
                    return
                assert delta.token is not None
                count += 1
                shown = text.feed(delta.token)
                said = () if request.logprobs is None else (self._said(delta),)
                if text.stopped:
                    usage = Usage(len(request.prompt), count)
                    yield Piece(shown, said, Ending.STOP, usage)
                    return
                if shown or said:
                    yield Piece(shown, said, usage=Usage(len(request.prompt), count))
        finally:
            await deltas.aclose()

    def _check(self, ask: Ask) -> None:
        able = self.capabilities
        if ask.logprobs is not None and able.logprobs is None:
            raise UnsupportedError("logprobs", f"the {able.engine} engine has no log-probabilities")
        if ask.logprobs is not None and ask.logprobs > (able.logprobs or 0):
            raise UnsupportedError(
                "top_logprobs",
                f"the {able.engine} engine names at most {able.logprobs} likely tokens, "
                f"not {ask.logprobs}",
            )
        if ask.schema is not None and not able.schema:
            raise UnsupportedError(
                "response_format", f"the {able.engine} engine cannot hold answers to a schema"
            )

    async def _prompt(self, ask: Ask) -> tuple[list[int], str]:
        if isinstance(ask.prompt, str):
            return await self.scribe.encode(ask.prompt), ""
        if ask.prompt is not None:
            size = self.tokenizer.get_vocab_size()
            if not all(0 <= token < size for token in ask.prompt):
                raise UnsupportedError("prompt", f"token ids go from 0 to {size - 1}")
            return list(ask.prompt), ""
        messages = list(ask.messages)
        ids = await self.scribe.prompt(messages, ask.tools)
        if not ask.shorten:
            return ids, ""
        left_out = 0
        needed = ask.max_new_tokens or LEAST_ANSWER
        while len(ids) + needed > self.capabilities.window:
            if (shorter := without_oldest_turn(messages)) is None:
                break
            left_out += len(messages) - len(shorter)
            messages = shorter
            ids = await self.scribe.prompt(messages, ask.tools)
        return ids, f"{left_out} oldest messages left out" if left_out else ""

    def _room(self, ask: Ask, prompt: int) -> int:
        window = self.capabilities.window
        wanted = ask.max_new_tokens
        if prompt + (wanted or LEAST_ANSWER) > window:
            raise ContextTooLongError(prompt, wanted or LEAST_ANSWER, window)
        return wanted if wanted is not None else window - prompt

    def _said(self, delta: Delta) -> Said:
        assert delta.token is not None
        assert delta.logprob is not None
        top = tuple((*self._spell(token), value) for token, value in delta.top)
        return Said(*self._spell(delta.token), delta.logprob, top)

    def _spell(self, token: int) -> tuple[str, bytes]:
        text = self.tokenizer.decode([token], skip_special_tokens=False)
        return text, text.encode("utf-8", "replace")


def without_oldest_turn(messages: list[Mapping[str, Any]]) -> list[Mapping[str, Any]] | None:
    """The conversation without its oldest turn (a user's message and what answered it).

    The system prompt and the last user message stay; None when nothing else is left.
    """
    opening = 0
    while opening < len(messages) and messages[opening]["role"] in ("system", "developer"):
        opening += 1
    for place in range(opening + 1, len(messages)):
        if messages[place]["role"] == "user":
            return [*messages[:opening], *messages[place:]]
    return None
