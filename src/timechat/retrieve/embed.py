"""Texts to vectors with the base model itself: no download, nothing beside it.

A text's vector is the mean of the last hidden states, later positions weighing more because they
have read more (RDS+, arXiv:2503.01807). The mean over the documents is taken off every vector: what
all texts share says nothing about which is meant.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from timechat.model.load import Loaded
from timechat.retrieve.index import Vectors

MAX_TOKENS = 256
BATCH = 16


class Embedder:
    """Embeds with one model. Call `centre` with the documents' vectors before searching."""

    def __init__(self, loaded: Loaded) -> None:
        self.loaded = loaded
        self._mean: Vectors | None = None

    def embed(
        self, texts: Sequence[str], progress: Callable[[int], None] = lambda _: None
    ) -> Vectors:
        """(n, D) vectors in the order of `texts`; only the first 256 tokens of a text are read."""
        found: list[Vectors] = []
        for start in range(0, len(texts), BATCH):
            part = texts[start : start + BATCH]
            found.append(self._batch(part))
            progress(len(part))
        vectors = np.concatenate(found)
        mean = self._mean
        return vectors if mean is None else vectors - mean

    def centre(self, vectors: Vectors) -> Vectors:
        mean = vectors.mean(0)
        self._mean = mean
        return vectors - mean

    @torch.inference_mode()
    def _batch(self, texts: Sequence[str]) -> Vectors:
        model, tokenizer = self.loaded.model, self.loaded.tokenizer
        rows = [
            list(tokenizer(t, add_special_tokens=False)["input_ids"])[:MAX_TOKENS] for t in texts
        ]
        longest = max(1, *map(len, rows))
        ids = torch.zeros(len(rows), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
            mask[i, : len(row)] = 1
        trunk = getattr(model, model.base_model_prefix)
        hidden = trunk(
            input_ids=ids.to(model.device), attention_mask=mask.to(model.device), use_cache=False
        ).last_hidden_state.float()
        weight = (mask * torch.arange(1, longest + 1)).to(hidden)
        mean = (hidden * weight[..., None]).sum(1) / weight.sum(1).clamp_min(1)[:, None]
        return mean.cpu().numpy().astype(np.float32)
