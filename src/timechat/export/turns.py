"""How llama.cpp wants the rows of a family's tensors: each turn, and the way back.

Which family needs which is `families`'.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PretrainedConfig

Turn = Callable[[str, Tensor, PretrainedConfig], Tensor]


def keep(_: str, tensor: Tensor, __: PretrainedConfig) -> Tensor:
    return tensor


def interleave(name: str, tensor: Tensor, config: PretrainedConfig) -> Tensor:
    """Llama's rotary pairs: from halves of a head (transformers) to neighbours (llama.cpp)."""
    heads = _rotated_heads(name, config)
    if heads is None:
        return tensor
    return tensor.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def deinterleave(name: str, tensor: Tensor, config: PretrainedConfig) -> Tensor:
    heads = _rotated_heads(name, config)
    if heads is None:
        return tensor
    return tensor.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def _rotated_heads(name: str, config: PretrainedConfig) -> int | None:
    if ".q_proj." in name:
        return int(config.num_attention_heads)
    return int(config.num_key_value_heads) if ".k_proj." in name else None


def raise_norms(name: str, tensor: Tensor, _: PretrainedConfig) -> Tensor:
    """Gemma multiplies by 1 + w; llama.cpp by what the file holds."""
    return tensor + 1 if name.endswith("norm.weight") else tensor


def lower_norms(name: str, tensor: Tensor, _: PretrainedConfig) -> Tensor:
    return tensor - 1 if name.endswith("norm.weight") else tensor


def ungroup(name: str, tensor: Tensor, config: PretrainedConfig) -> Tensor:
    """GPT-NeoX holds q, k and v head by head; llama.cpp wants all q, then all k, then all v."""
    if ".query_key_value." not in name:
        return tensor
    heads = int(config.num_attention_heads)
    return tensor.unflatten(0, (heads, 3, -1)).transpose(0, 1).flatten(0, 2)


def regroup(name: str, tensor: Tensor, config: PretrainedConfig) -> Tensor:
    if ".query_key_value." not in name:
        return tensor
    heads = int(config.num_attention_heads)
    return tensor.unflatten(0, (3, heads, -1)).transpose(0, 1).flatten(0, 2)


def falcon_kv_heads(config: PretrainedConfig) -> int:
    """How many key heads a Falcon has; its settings say it in three ways."""
    if config.new_decoder_architecture:
        return int(config.num_kv_heads)
    return 1 if config.multi_query else int(config.num_attention_heads)


def ungroup_falcon(name: str, tensor: Tensor, config: PretrainedConfig) -> Tensor:
    """Groups of (queries, key, value) to all queries, all keys, all values."""
    if ".query_key_value." not in name:
        return tensor
    groups = falcon_kv_heads(config)
    each = int(config.num_attention_heads) // groups
    split = tensor.unflatten(0, (groups, each + 2, -1))
    parts = (split[:, :each], split[:, each : each + 1], split[:, each + 1 :])
    return torch.cat([part.flatten(0, 2) for part in parts])


def regroup_falcon(name: str, tensor: Tensor, config: PretrainedConfig) -> Tensor:
    if ".query_key_value." not in name:
        return tensor
    groups, heads = falcon_kv_heads(config), int(config.num_attention_heads)
    size = tensor.shape[0] // (heads + 2 * groups)
    q, k, v = tensor.split([heads * size, groups * size, groups * size])
    parts = [
        q.unflatten(0, (groups, -1, size)),
        *(x.unflatten(0, (groups, 1, size)) for x in (k, v)),
    ]
    return torch.cat(parts, dim=1).flatten(0, 2)


def transpose(name: str, tensor: Tensor, _: PretrainedConfig) -> Tensor:
    """GPT-2 holds its linear layers as (in, out)."""
    turned = (".c_attn.weight", ".c_proj.weight", ".c_fc.weight")
    return tensor.T if name.endswith(turned) else tensor
