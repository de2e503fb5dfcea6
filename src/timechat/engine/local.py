"""One engine with one chat format around it.

What every answer needs is here once, whichever engine works below: the template, whole characters,
stop strings, token counts, admission. What is asked and said is `responder`'s.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator, Mapping
from dataclasses import replace
from typing import Any

from tokenizers import Tokenizer

from timechat.engine.admission import Admission
from timechat.engine.calls import CallReader
from timechat.engine.occupancy import Occupancy
from timechat.engine.protocol import (
    Capabilities,
    Delta,
    Ending,
    Engine,
    EngineError,
    Request,
    SchemaError,
)
from timechat.engine.responder import (
    Ask,
    ContextTooLongError,
    Grammar,
    Piece,
    Said,
    Scribe,
    UnsupportedError,
    Usage,
)
from timechat.engine.text import TextStream, bytes_of

# Room that a conversation must leave for an answer when no length was asked for.
LEAST_ANSWER = 8


class LocalResponder:
    """One engine with one chat format."""

    def __init__(
        self,
        engine: Engine,
        scribe: Scribe,
        tokenizer: Tokenizer,
        max_waiting: int = 64,
        grammar: Grammar | None = None,
    ) -> None:
        self.engine = engine
        self.scribe = scribe
        self.grammar = grammar
        self.tokenizer = tokenizer
        self.admission = Admission(max_waiting)
        # No token is more characters than its piece of the vocabulary.
        self._longest_piece = max(map(len, tokenizer.get_vocab()))
        self._occupancy = Occupancy()

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
        await self._occupancy.emptied(deadline_s)
        return await self.engine.drain(max(0.0, deadline_s - (time.monotonic() - begun)))

    async def stop(self) -> None:
        await self.engine.stop()
        await self.scribe.stop()
        if self.grammar is not None:
            await self.grammar.stop()

    async def reply(self, ask: Ask) -> AsyncGenerator[Piece]:
        if not self.engine.ready:
            raise EngineError("the engine is not taking requests")
        with self._occupancy.inside():
            async with contextlib.aclosing(self._reply(ask)) as pieces:
                async for piece in pieces:
                    yield piece

    async def _reply(self, ask: Ask) -> AsyncGenerator[Piece]:
        self._check(ask)
        with self.admission.arrival():
            if ask.schema is not None and self.grammar is not None:
                await self.grammar.check(ask.schema)
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
            reader = CallReader(self.scribe.calls if ask.tools else "")
            async with contextlib.aclosing(self._answer(request, ask.stop, reader)) as pieces:
                # Some schemas an engine finds wanting only when it begins to speak.
                heard = [await anext(pieces)] if ask.schema is not None else []
                yield Piece(usage=Usage(len(prompt)), notice=notice)
                for piece in heard:
                    yield piece
                async for piece in pieces:
                    yield piece

    async def _answer(
        self, request: Request, stop: tuple[str, ...], reader: CallReader
    ) -> AsyncGenerator[Piece]:
        text = TextStream(self.tokenizer, stop)
        count = 0
        deltas = self.engine.stream(request)
        try:
            async for delta in deltas:
                if delta.is_misfit:
                    raise SchemaError(delta.detail)
                said: tuple[Said, ...] = ()
                if delta.ending is None:
                    assert delta.token is not None
                    count += 1
                    shown, calls = reader.feed(text.feed(delta.token))
                    if request.logprobs is not None:
                        said = (self._said(delta),)
                else:
                    shown, calls = reader.feed(text.end())
                ending = Ending.STOP if text.stopped else delta.ending
                if ending is not None:
                    rest, last = reader.end()
                    shown, calls = shown + rest, calls + last
                if shown or said or calls or ending is not None:
                    usage = Usage(len(request.prompt), count)
                    yield Piece(shown, said, tuple(calls), ending, usage, detail=delta.detail)
                if ending is not None:
                    return
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
        needed = ask.max_new_tokens or LEAST_ANSWER
        if isinstance(ask.prompt, str):
            self._check_size(len(ask.prompt), needed)
            return await self.scribe.encode(ask.prompt), ""
        if ask.prompt is not None:
            size = self.tokenizer.get_vocab_size()
            if not all(0 <= token < size for token in ask.prompt):
                raise UnsupportedError("prompt", f"token ids go from 0 to {size - 1}")
            return list(ask.prompt), ""
        messages = list(ask.messages)
        while True:
            try:
                self._check_size(sum(map(size_of, messages)), needed)
                ids = await self.scribe.prompt(messages, ask.tools)
                self._check_room(len(ids), needed)
            except ContextTooLongError:
                shorter = without_oldest_turn(messages) if ask.shorten else None
                if shorter is None:
                    raise
                messages = shorter
                continue
            left_out = len(ask.messages) - len(messages)
            return ids, f"{left_out} oldest messages left out" if left_out else ""

    def _check_size(self, num_characters: int, needed: int) -> None:
        """Raises ContextTooLongError, before anything is tokenised, for what cannot fit at all."""
        least = num_characters // self._longest_piece
        self._check_room(least, needed, at_least=True)

    def _check_room(self, prompt: int, needed: int, at_least: bool = False) -> None:
        if prompt + needed > self.capabilities.window:
            raise ContextTooLongError.counted(prompt, needed, self.capabilities.window, at_least)

    def _room(self, ask: Ask, prompt: int) -> int:
        wanted = ask.max_new_tokens
        self._check_room(prompt, wanted or LEAST_ANSWER)
        return wanted if wanted is not None else self.capabilities.window - prompt

    def _said(self, delta: Delta) -> Said:
        assert delta.token is not None
        assert delta.logprob is not None
        top = tuple((*self._spell(token), value) for token, value in delta.top)
        return Said(*self._spell(delta.token), delta.logprob, top)

    def _spell(self, token: int) -> tuple[str, bytes]:
        text = self.tokenizer.decode([token], skip_special_tokens=False)
        return text, bytes_of(self.tokenizer, token)


def size_of(message: Mapping[str, Any]) -> int:
    """Characters of a message's text."""
    content = message.get("content")
    if isinstance(content, str):
        return len(content)
    parts = content if isinstance(content, list) else []
    return sum(len(str(part.get("text", ""))) for part in parts if isinstance(part, Mapping))


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
