"""A `Core` on llama.cpp: the fastest single conversation on a CPU, from a GGUF file that we write.

All running conversations go through one context together: each step reads one token of those that
speak, and a part of the next prompt beside them. The cache is `llamacpp`'s and `prefixes`' matter,
choosing `choose`'s, holding answers to a schema `grammar`'s.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from timechat.engine.choose import choose, named, penalise
from timechat.engine.grammar import Guide, find_vocabulary
from timechat.engine.llamacpp import LlamaContext, LlamaModel, Part
from timechat.engine.prefixes import Prefixes
from timechat.engine.protocol import Capabilities, Delta, Ending, Request, SchemaError
from timechat.model.machine import free_memory

# Tokens of a prompt that are read in one step: alone, and while others speak.
CHUNK, CHUNK_IN_COMPANY = 256, 64
# Conversations in one step. More are waiting.
MOST_RUNNING = 64
# The share of free memory that the cache may take, and its most in windows; half as much again
# is for what was parked.
CACHE_SHARE = 0.25
CACHE_WINDOWS = 8
TOP_LOGPROBS = 20


@dataclass
class _Running:
    request: Request
    room: int
    sequence: int
    held: int  # tokens of `ids` that the cache holds
    ids: list[int]  # the prompt and what was said
    generator: torch.Generator
    guide: Guide | None
    said: list[int] = field(default_factory=list[int])

    @property
    def speaks(self) -> bool:
        return len(self.ids) - self.held == 1


class LlamaCore:
    """Steps every conversation that speaks by a token, and reads prompts in the order they came."""

    def __init__(self, file: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        model = LlamaModel(file)
        kv_tokens = min(
            CACHE_WINDOWS * model.window, int(free_memory() * CACHE_SHARE / model.token_bytes)
        )
        window = min(model.window, kv_tokens)
        short = f"window cut from {model.window}: memory" if window < model.window else ""
        # What torch does here are single rows: a second thread would only be in the way.
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        self._context = LlamaContext(model, kv_tokens, MOST_RUNNING, CHUNK + MOST_RUNNING, threads)
        self._prefixes = Prefixes(self._context, MOST_RUNNING, kv_tokens // 2)
        self._vocabulary = find_vocabulary(tokenizer, model.num_rows)
        self.capabilities = Capabilities(
            "llama",
            window,
            kv_tokens,
            logprobs=TOP_LOGPROBS,
            schema=self._vocabulary is not None,
            prefix_cache=True,
            note=short,
            kv_bytes=kv_tokens * model.token_bytes,
        )
        self._waiting: deque[tuple[int, Request, int, Guide | None]] = deque()
        self._running: dict[int, _Running] = {}
        self._unread: list[tuple[int, Delta]] = []

    @property
    def busy(self) -> bool:
        return bool(self._running or self._waiting or self._unread)

    def add(self, key: int, request: Request) -> None:
        room = request.room(self.capabilities.window)
        if room <= 0:
            self._unread.append((key, Delta(None, Ending.LENGTH)))
            return
        guide = None
        if request.schema is not None:
            if self._vocabulary is None:
                raise ValueError("answers are held to a schema by llguidance: not installed")
            guide = Guide(self._vocabulary, request.schema, request.stop)
        self._waiting.append((key, request, room, guide))

    def cancel(self, key: int) -> None:
        if (one := self._running.pop(key, None)) is not None:
            self._prefixes.end(one.sequence, one.ids[: one.held])
        else:
            self._waiting = deque(entry for entry in self._waiting if entry[0] != key)

    def step(self) -> list[tuple[int, Delta]]:
        out, self._unread = self._unread, []
        plan = self._plan()
        if not plan:
            return out
        parts = [
            Part(one.sequence, one.held, new := one.ids[one.held : one.held + count],
                 one.held + len(new) == len(one.ids))
            for _, one, count in plan
        ]  # fmt: skip
        rows = iter(self._context.decode(parts))
        for (key, one, _), part in zip(plan, parts, strict=True):
            one.held += len(part.tokens)
            if not part.asked:
                continue
            for delta in self._say(one, next(rows)):
                out.append((key, delta))
                if delta.ending is not None:
                    self.cancel(key)
        return out

    def _plan(self) -> list[tuple[int, _Running, int]]:
        """Who goes on by how many tokens: all who speak by one, prompts by what one chunk takes."""
        speaking = [(key, one, 1) for key, one in self._running.items() if one.speaks]
        left = CHUNK_IN_COMPANY if speaking else CHUNK
        reading: list[tuple[int, _Running, int]] = []
        for key, one in self._running.items():
            if not one.speaks and left:
                count = min(left, len(one.ids) - one.held)
                reading.append((key, one, count))
                left -= count
        # One who begins after another's prompt was read shares what both begin with.
        while left and self._waiting and self._has_room():
            key, one = self._begin(*self._waiting.popleft())
            count = min(left, len(one.ids) - one.held)
            reading.append((key, one, count))
            left -= count
        return speaking + reading

    def _has_room(self) -> bool:
        """Whether the next in line fits with its longest answer, whatever the others may say."""
        _, request, room, _ = self._waiting[0]
        held = sum(len(one.request.prompt) + one.room for one in self._running.values())
        fits = held + len(request.prompt) + room <= self.capabilities.kv_tokens
        return fits and self._prefixes.has_free

    def _begin(
        self, key: int, request: Request, room: int, guide: Guide | None
    ) -> tuple[int, _Running]:
        running = {one.sequence: one.ids[: one.held] for one in self._running.values()}
        sequence, held = self._prefixes.begin(request.prompt, running)
        generator = torch.Generator().manual_seed(request.sampling.seed)
        one = _Running(request, room, sequence, held, list(request.prompt), generator, guide)
        self._running[key] = one
        return key, one

    def _say(self, one: _Running, logits: Tensor) -> list[Delta]:
        request = one.request
        logits = penalise(logits, one.said, request.sampling)
        if one.guide is not None and one.guide.is_over and not request.stop:
            return [Delta(None, Ending.STOP)]
        try:
            token = _chosen(one, logits)
        except SchemaError as error:  # it took more work than any schema may
            return [Delta(None, Ending.FAILED, detail=str(error), is_misfit=True)]
        if token in request.stop:
            return [Delta(None, Ending.STOP)]
        one.ids.append(token)
        one.said.append(token)
        deltas = [named(logits, token, request.logprobs)]
        if len(one.said) >= one.room:
            deltas.append(Delta(None, Ending.LENGTH))
        return deltas


def _chosen(one: _Running, logits: Tensor) -> int:
    """The next token, one that its schema allows. Raises SchemaError."""
    if one.guide is None:
        return choose(logits, one.request.sampling, one.generator)
    token = choose(one.guide.held(logits), one.request.sampling, one.generator)
    if token not in one.request.stop:
        one.guide.take(token)
    return token
