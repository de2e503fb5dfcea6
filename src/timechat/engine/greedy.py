"""The likeliest answers to many prompts at once: batches, left padding, and rows that leave.

A batch is as large as its tokens allow, since a batch of answers costs little more than one answer
(each step reads all weights once). Which prompts share a batch, and when a row leaves it, follows
from the prompts and answers alone: in low precision the last bits depend on the company.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, LinearAttentionCacheLayerMixin

# Prompts answered side by side at most, their tokens with padding, and what the cache may take for
# these: a large model's token takes half a megabyte.
MOST_ROWS, MOST_TOKENS, MOST_BYTES = 96, 8192, 2**30
# The share of a batch that has ended before its rows are taken out: taking out copies the cache.
ENDED = 0.125


def in_batches(model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """The places of the prompts that `model` answers together, of similar length.

    A batch given by itself is answered as it is among the others.
    """
    most = min(MOST_TOKENS, MOST_BYTES // token_bytes(model))
    ranked = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    batches: list[list[int]] = []
    for place in ranked:
        # The newest is the longest, to which the others are padded.
        fits = batches and (len(batches[-1]) + 1) * len(prompts[place]) <= most
        if fits and len(batches[-1]) < MOST_ROWS:
            batches[-1].append(place)
        else:
            batches.append([place])
    return batches


@torch.inference_mode()
def greedy(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    stop: frozenset[int],
) -> list[list[int]]:
    """The likeliest token after each prompt, and so on, to a stop token (included) or the limit."""
    ids, mask = _pad_left(prompts)
    ids, mask = ids.to(model.device), mask.to(model.device)
    # Positions count real tokens.
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    cache = DynamicCache(config=model.config)
    out: list[list[int]] = [[] for _ in prompts]
    rows = list(range(len(prompts)))
    for _ in range(max_new_tokens):
        logits = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            cache=cache,
            # As an index: the slice that a number makes has gaps between its rows, for which the
            # product with the head copies the head once a row.
            logits_to_keep=torch.tensor([ids.shape[1] - 1], device=ids.device),
        ).logits
        chosen = logits[:, -1].argmax(-1)
        going: list[int] = []
        for place, (row, token) in enumerate(zip(rows, chosen.tolist(), strict=True)):
            if out[row] and out[row][-1] in stop:
                continue
            out[row].append(token)
            if token not in stop:
                going.append(place)
        if not going:
            break
        ids, positions = chosen[:, None], positions[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        if len(going) <= (1 - ENDED) * len(rows) and _can_drop_rows(cache):
            kept = torch.tensor(going, device=ids.device)
            cache.batch_select_indices(kept)
            ids, mask, positions = ids[kept], mask[kept], positions[kept]
            rows = [rows[place] for place in going]
    return out


def _pad_left(prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Token ids and mask (n, longest), each prompt at the end of its row."""
    longest = max(map(len, prompts))
    ids = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(list(prompt))
        mask[row, longest - len(prompt) :] = 1
    return ids, mask


def _can_drop_rows(cache: DynamicCache) -> bool:
    """Whether all that the cache holds has a row a prompt: states of linear attention are left in
    place by transformers' own selection."""
    return all(
        isinstance(layer, DynamicLayer) and not isinstance(layer, LinearAttentionCacheLayerMixin)
        for layer in cache.layers
    )


def token_bytes(model: PreTrainedModel) -> int:
    """What keys and values of one token take, where every layer attends and keeps both."""
    config = model.config.get_text_config()
    width = int(config.hidden_size)
    if heads := getattr(config, "num_key_value_heads", None):
        size = getattr(config, "head_dim", None) or width // int(config.num_attention_heads)
        width = int(heads) * int(size)
    return int(config.num_hidden_layers) * 2 * width * model.dtype.itemsize
