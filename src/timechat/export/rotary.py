"""Rotary positions in GGUF: base, width and scaling, written from a config and read back into one.

Kinds of scaling that llama.cpp has no equal of are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from timechat.errors import ExportError

FACTORS, LONG, SHORT = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"
# What llama.cpp gives the local layers of Gemma 3, whatever a file says.
_LOCAL_BASE = 10_000.0
_WITHOUT = ("gpt2",)


def rotary_keys(config: PretrainedConfig) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Keys (after the architecture) and tensors that say how positions are rotated."""
    if config.model_type in _WITHOUT:
        return {}, {}
    params = _params(config)
    keys: dict[str, Any] = {
        "rope.dimension_count": _width(config, params),
        "rope.freq_base": float(params["rope_theta"]),
    }
    kind = str(params.get("rope_type") or "default")
    if kind == "default":
        return keys, {}
    if kind == "linear":
        return keys | {"rope.scaling.type": "linear", "rope.scaling.factor": params["factor"]}, {}
    if kind == "llama3":
        return keys, {FACTORS: _llama3_factors(config, keys, params)}
    if kind == "longrope":
        return _longrope(config, keys, params)
    if kind == "yarn" and not _UNUSUAL_YARN & set(params):
        original = params.get("original_max_position_embeddings") or config.max_position_embeddings
        return keys | {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": float(params["factor"]),
            "rope.scaling.original_context_length": int(original),
        }, {}
    raise ExportError(f"positions scaled by {kind!r} cannot be written as GGUF: export it merged")


def rotary_params(
    metadata: Mapping[str, Any], tensors: Mapping[str, Tensor], head_size: int
) -> dict[str, Any]:
    """The `rope_parameters` that a file's keys stand for."""
    params: dict[str, Any] = {
        "rope_type": "default",
        "rope_theta": float(metadata["rope.freq_base"]),
    }
    width = int(metadata["rope.dimension_count"])
    if width != head_size:
        params["partial_rotary_factor"] = width / head_size
    if LONG in tensors:
        original = int(metadata["rope.scaling.original_context_length"])
        return params | {
            "rope_type": "longrope",
            "long_factor": tensors[LONG].tolist(),
            "short_factor": tensors[SHORT].tolist(),
            "original_max_position_embeddings": original,
        }
    kind = metadata.get("rope.scaling.type")
    if kind is not None:
        params |= {"rope_type": kind, "factor": float(metadata["rope.scaling.factor"])}
    if kind == "yarn":
        original = int(metadata["rope.scaling.original_context_length"])
        params["original_max_position_embeddings"] = original
    return params


def scale_frequencies(model: nn.Module, factors: Tensor) -> None:
    """Divide the rotary frequencies of a model by a file's factors."""
    for module in model.modules():
        for name in ("inv_freq", "original_inv_freq"):
            table = getattr(module, name, None)
            if isinstance(table, Tensor):
                table.div_(factors.to(table))


def _params(config: PretrainedConfig) -> dict[str, Any]:
    found = cast(dict[str, Any], config.rope_parameters)
    if "full_attention" not in found:
        return found
    local = found["sliding_attention"]
    if local.get("rope_theta") != _LOCAL_BASE or local.get("rope_type", "default") != "default":
        raise ExportError(
            f"the local layers rotate positions by {local}; llama.cpp takes base {_LOCAL_BASE:g} "
            "for granted: export it merged instead"
        )
    return found["full_attention"]


def head_size_of(config: PretrainedConfig) -> int:
    given = getattr(config, "head_dim", None)
    return int(given) if given else int(config.hidden_size) // int(config.num_attention_heads)


def _width(config: PretrainedConfig, params: Mapping[str, Any]) -> int:
    share = params.get("partial_rotary_factor")
    for name in ("partial_rotary_factor", "rotary_pct"):
        share = getattr(config, name, None) if share is None else share
    return int(head_size_of(config) * (1.0 if share is None else share))


def _llama3_factors(
    config: PretrainedConfig, keys: Mapping[str, Any], params: Mapping[str, Any]
) -> Tensor:
    """By how much each frequency is slowed: transformers' own table against the plain one."""
    width = keys["rope.dimension_count"]
    plain = params["rope_theta"] ** -(torch.arange(0, width, 2, dtype=torch.float32) / width)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    return (plain / scaled.float()).contiguous()


def _longrope(
    config: PretrainedConfig, keys: dict[str, Any], params: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    original = params.get("original_max_position_embeddings")
    original = int(original or config.original_max_position_embeddings)
    _, factor = ROPE_INIT_FUNCTIONS["longrope"](config, torch.device("cpu"))
    keys |= {
        "rope.scaling.original_context_length": original,
        "rope.scaling.attn_factor": float(factor),
    }
    names = ((LONG, "long_factor"), (SHORT, "short_factor"))
    return keys, {n: torch.tensor(params[key], dtype=torch.float32) for n, key in names}


_UNUSUAL_YARN = {"beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim"}
