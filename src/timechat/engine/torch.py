"""Generation with transformers in this process: one conversation streamed, or many in a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from timechat.engine.choose import choose
from timechat.engine.protocol import Delta, Ending, Sampling

# Prompts answered side by side; more gains little on a CPU and costs cache.
BATCH = 48


class TorchEngine:
    """Any causal model that transformers loads."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

    @torch.inference_mode()
    def stream(
        self, prompt: Sequence[int], sampling: Sampling, stop: frozenset[int]
    ) -> Iterator[Delta]:
        """Yield a delta per token and at last the ending; closing the generator cancels."""
        window = window_of(self.model)
        room = min(sampling.max_new_tokens, window - len(prompt))
        generator = torch.Generator().manual_seed(sampling.seed)
        cache = DynamicCache(config=self.model.config)
        ids = torch.tensor([list(prompt)], device=self.model.device)
        for _ in range(max(0, room)):
            out = self.model(input_ids=ids, past_key_values=cache, logits_to_keep=1)
            token = choose(out.logits[0, -1].float().cpu(), sampling, generator)
            if token in stop:
                yield Delta(None, Ending.STOP)
                return
            yield Delta(token)
            ids = torch.tensor([[token]], device=self.model.device)
        yield Delta(None, Ending.LENGTH)

    def answers(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        stop: frozenset[int],
        progress: Callable[[int], None] = lambda _: None,
    ) -> list[list[int]]:
        """The likeliest continuation of each prompt, stop token included where one came."""
        out: list[list[int]] = [[] for _ in prompts]
        for members in in_batches(prompts):
            found = self._greedy([prompts[i] for i in members], max_new_tokens, stop)
            for i, ids in zip(members, found, strict=True):
                out[i] = ids
            progress(len(members))
        return out

    @torch.inference_mode()
    def _greedy(
        self, prompts: list[Sequence[int]], max_new_tokens: int, stop: frozenset[int]
    ) -> list[list[int]]:
        """Left-padded greedy decoding; padding is masked and positions count real tokens."""
        device = self.model.device
        longest = max(map(len, prompts))
        ids = torch.zeros(len(prompts), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt) :] = torch.tensor(list(prompt))
            mask[row, longest - len(prompt) :] = 1
        ids, mask = ids.to(device), mask.to(device)
        positions = (mask.cumsum(-1) - 1).clamp_min(0)
        cache = DynamicCache(config=self.model.config)
        stops = torch.tensor(sorted(stop), device=device)
        running = torch.ones(len(prompts), dtype=torch.bool, device=device)
        taken: list[Tensor] = []
        for _ in range(max_new_tokens):
            logits = self.model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                logits_to_keep=1,
            ).logits
            ids = logits[:, -1].argmax(-1, keepdim=True)
            taken.append(ids[:, 0])
            running &= ~torch.isin(ids[:, 0], stops)
            if not running.any():
                break
            mask = torch.cat([mask, mask.new_ones(len(prompts), 1)], dim=1)
            positions = positions[:, -1:] + 1
        return [_until_stop(row.tolist(), stop) for row in torch.stack(taken, dim=1)]


def in_batches(prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """The places of the prompts that `answers` takes together: of similar length, `BATCH` at most.

    A batch given by itself is answered as it is among the others.
    """
    ranked = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    return [ranked[start : start + BATCH] for start in range(0, len(ranked), BATCH)]


def window_of(model: PreTrainedModel) -> int:
    """How many tokens the model can hold in view."""
    return int(getattr(model.config, "max_position_embeddings", 0) or 2048)


def _until_stop(ids: list[int], stop: frozenset[int]) -> list[int]:
    end = next((i + 1 for i, token in enumerate(ids) if token in stop), len(ids))
    return ids[:end]
