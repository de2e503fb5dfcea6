"""Generation with transformers in this process: one conversation streamed, or many in a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from transformers import DynamicCache, PreTrainedModel

from timechat.engine.choose import choose
from timechat.engine.greedy import greedy, in_batches
from timechat.engine.protocol import Delta, Ending, Sampling


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
            out = self.model(input_ids=ids, cache=cache, logits_to_keep=1)
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
        for members in in_batches(self.model, prompts):
            together = [prompts[i] for i in members]
            found = greedy(self.model, together, max_new_tokens, stop)
            for i, ids in zip(members, found, strict=True):
                out[i] = ids
            progress(len(members))
        return out


def window_of(model: PreTrainedModel) -> int:
    """How many tokens the model can hold in view."""
    return int(getattr(model.config, "max_position_embeddings", 0) or 2048)
