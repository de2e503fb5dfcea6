"""A `Core` on transformers: any causal model, several conversations at once, prefixes reused.

Each request owns a key-value cache; a finished one is kept, and the next request that begins with
the same tokens goes on from it. The oldest are dropped when the budget is full.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from transformers import DynamicCache, PreTrainedModel

from timechat.engine.choose import choose, named, penalise
from timechat.engine.greedy import token_bytes
from timechat.engine.protocol import Capabilities, Delta, Ending, Request
from timechat.engine.torch import window_of

# Tokens of a long prompt read in one step, so that it does not hold up the others' answers.
CHUNK = 256
# Most likely tokens that can be named beside the chosen one (OpenAI's own limit).
TOP_LOGPROBS = 20


@dataclass
class _Running:
    request: Request
    room: int
    cache: DynamicCache
    ids: list[int]  # the prompt and what was said
    generator: torch.Generator
    num_cached: int = 0
    said: list[int] = field(default_factory=list[int])


class BatchCore:
    """Steps every running request by one token, or by one chunk of its prompt."""

    def __init__(self, model: PreTrainedModel, kv_tokens: int = 65_536) -> None:
        self.model = model
        self.capabilities = Capabilities(
            "torch",
            window=window_of(model),
            kv_tokens=kv_tokens,
            logprobs=TOP_LOGPROBS,
            prefix_cache=True,
            kv_bytes=kv_tokens * token_bytes(model),
        )
        self._running: dict[int, _Running] = {}
        self._kept: OrderedDict[tuple[int, ...], DynamicCache] = OrderedDict()

    @property
    def busy(self) -> bool:
        return bool(self._running)

    def add(self, key: int, request: Request) -> None:
        room = request.room(self.capabilities.window)
        cache, num_cached = self._reuse(request.prompt)
        chance = torch.Generator().manual_seed(request.sampling.seed)
        self._running[key] = _Running(
            request, room, cache, list(request.prompt), chance, num_cached
        )

    def cancel(self, key: int) -> None:
        if (one := self._running.pop(key, None)) is not None:
            self._keep(one)

    def step(self) -> list[tuple[int, Delta]]:
        out: list[tuple[int, Delta]] = []
        for key, one in list(self._running.items()):
            for delta in self._advance(one):
                out.append((key, delta))
                if delta.ending is not None:
                    self.cancel(key)
        return out

    @torch.inference_mode()
    def _advance(self, one: _Running) -> list[Delta]:
        sampling = one.request.sampling
        if one.room <= 0:
            return [Delta(None, Ending.LENGTH)]
        new = one.ids[one.num_cached : one.num_cached + CHUNK]
        ids = torch.tensor([new], device=self.model.device)
        out = self.model(input_ids=ids, cache=one.cache, logits_to_keep=1)
        one.num_cached += len(new)
        if one.num_cached < len(one.ids):
            return []
        logits = penalise(out.logits[0, -1].float().cpu(), one.said, sampling)
        token = choose(logits, sampling, one.generator)
        if token in one.request.stop:
            return [Delta(None, Ending.STOP)]
        one.ids.append(token)
        one.said.append(token)
        deltas = [named(logits, token, one.request.logprobs)]
        if len(one.said) >= one.room:
            deltas.append(Delta(None, Ending.LENGTH))
        return deltas

    def _keep(self, one: _Running) -> None:
        self._kept[tuple(one.ids[: one.num_cached])] = one.cache
        held = sum(map(len, self._kept)) + sum(len(r.ids) for r in self._running.values())
        while self._kept and held > self.capabilities.kv_tokens:
            ids, _ = self._kept.popitem(last=False)
            held -= len(ids)

    def _reuse(self, prompt: Sequence[int]) -> tuple[DynamicCache, int]:
        """The kept cache that shares the longest beginning, cut to it; else an empty one."""
        best, shared = None, 0
        for ids in self._kept:
            same = _common(ids, prompt)
            if same > shared:
                best, shared = ids, same
        # The last prompt token is always read again: its logits choose the first word.
        shared = min(shared, len(prompt) - 1)
        if best is None or shared < 1:
            return DynamicCache(config=self.model.config), 0
        cache = self._kept.pop(best)
        if (surplus := len(best) - shared) > 0:
            cache.crop(-surplus)
        return cache, shared


def _common(left: tuple[int, ...], right: Sequence[int]) -> int:
    """How many tokens both begin with."""
    for place, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return place
    return min(len(left), len(right))
