"""From logits to the next token: penalties, temperature, nucleus, and what it would have cost."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from timechat.engine.protocol import Delta, Sampling

_FIRST_RANKED = 256


def choose(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """The likeliest token, or one sampled from the nucleus (Holtzman et al. 2019).

    `logits` is one row in fp32 on the CPU.
    """
    if sampling.temperature <= 0:
        return int(logits.argmax())
    probabilities = (logits / sampling.temperature).softmax(-1)
    if sampling.top_p >= 1:
        return int(torch.multinomial(probabilities, 1, generator=generator))
    ranked, tokens = nucleus(probabilities, sampling.top_p)
    return int(tokens[torch.multinomial(ranked, 1, generator=generator)])


def nucleus(probabilities: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """The fewest likeliest tokens that make up `share`: their probabilities, and which they are.

    Looked for among a few first: to sort a whole vocabulary takes half as long as a small model
    takes to compute it.
    """
    count = min(_FIRST_RANKED, len(probabilities))
    while True:
        ranked, tokens = probabilities.topk(count)
        inside = ranked.cumsum(-1) - ranked < share
        if count == len(probabilities) or not inside[-1]:
            return ranked[inside], tokens[inside]
        count = min(16 * count, len(probabilities))


def penalise(logits: Tensor, said: Sequence[int], sampling: Sampling) -> Tensor:
    """OpenAI's penalties: a token loses `presence` once, and `frequency` for each time said."""
    if not said or (sampling.presence_penalty == 0 and sampling.frequency_penalty == 0):
        return logits
    tokens, counts = torch.tensor(list(said)).unique(return_counts=True)
    out = logits.clone()
    out[tokens] -= sampling.presence_penalty + sampling.frequency_penalty * counts
    return out


def named(logits: Tensor, token: int, asked: int | None) -> Delta:
    """The chosen token, with its log-probability and the `asked` likeliest where wanted."""
    if asked is None:
        return Delta(token)
    logs = logits.log_softmax(-1)
    values, tokens = logs.topk(asked) if asked else (logs[:0], logs[:0])
    top = tuple((int(t), float(v)) for t, v in zip(tokens, values, strict=True))
    return Delta(token, logprob=float(logs[token]), top=top)
