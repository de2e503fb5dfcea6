"""Activation checkpointing: each layer keeps its input and is worked out again going backwards.

It costs a third more arithmetic and saves what a layer would keep, several times its input. The
second pass sees the very layout and masks of the first, so its numbers are the same bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from timechat.model.allocator import hand_back_large_pieces
from timechat.model.attention import again, current_run
from timechat.model.choose import layer_list


def recompute_layers(model: PreTrainedModel) -> None:
    """Have every layer of `model` worked out again in the backward pass: memory is short."""
    hand_back_large_pieces()
    for layer in layer_list(model)[1]:
        layer.forward = _twice(model, layer.forward)


def _twice(model: PreTrainedModel, forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*inputs: Any, **options: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*inputs, **options)
        now = current_run()

        def contexts() -> Any:
            return nullcontext(), nullcontext() if now is None else again(model, now)

        return checkpoint(
            forward,
            *inputs,
            use_reentrant=False,
            context_fn=contexts,
            preserve_rng_state=False,
            **options,
        )

    return run
