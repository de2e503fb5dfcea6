"""What GGUF calls a family's settings and tensors, and which of them llama.cpp wants turned.

One table read in both directions: `ggufile` writes by it, `readback` builds a model from it. A
setting that llama.cpp takes for granted is listed as `assumed` and refused when it is another,
because the file could not say so. How tensors are turned is `turns`', rotary positions `rotary`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, TensorNameMap, get_tensor_name_map
from transformers import PretrainedConfig

from timechat.errors import ExportError
from timechat.export.turns import (
    Turn,
    deinterleave,
    interleave,
    keep,
    lower_norms,
    raise_norms,
    regroup,
    regroup_falcon,
    transpose,
    ungroup,
    ungroup_falcon,
)

_SILU, _GELU_TANH = ("silu", "swish"), ("gelu_pytorch_tanh", "gelu_new", "gelu_fast")
# llama.cpp's only GELU is the tanh form, so the exact one comes out within some 1e-3 of it.
_GELU = (*_GELU_TANH, "gelu")
_RMS = (("attention.layer_norm_rms_epsilon", "rms_norm_eps"),)
_SIZES = (
    ("context_length", "max_position_embeddings"),
    ("embedding_length", "hidden_size"),
    ("block_count", "num_hidden_layers"),
    ("attention.head_count", "num_attention_heads"),
    ("vocab_size", "vocab_size"),
)
_COMMON = (*_SIZES, ("feed_forward_length", "intermediate_size"))
_GROUPED = (*_COMMON, ("attention.head_count_kv", "num_key_value_heads"))
_HEAD = (("attention.key_length", "head_dim"), ("attention.value_length", "head_dim"))


@dataclass(frozen=True)
class Family:
    """One `model_type`. `fields` pair a GGUF key (after the architecture) with a setting."""

    arch: MODEL_ARCH
    fields: tuple[tuple[str, str], ...]
    assumed: dict[str, tuple[Any, ...]] = field(default_factory=dict[str, tuple[Any, ...]])
    turn: Turn = keep
    back: Turn = keep

    @property
    def name(self) -> str:
        """The architecture's name, with which its keys begin."""
        return MODEL_ARCH_NAMES[self.arch]

    def names(self, config: PretrainedConfig) -> TensorNameMap:
        return get_tensor_name_map(self.arch, int(config.num_hidden_layers))


_LLAMA = Family(
    MODEL_ARCH.LLAMA,
    (*_GROUPED, *_RMS, *_HEAD),
    {"hidden_act": _SILU},
    interleave,
    deinterleave,
)
_GEMMA_ASSUMED: dict[str, tuple[Any, ...]] = {
    "hidden_activation": (*_GELU_TANH, None),
    "attention_bias": (False,),
    "tie_word_embeddings": (True,),
}
_SOFT_CAPS = (
    ("attn_logit_softcapping", "attn_logit_softcapping"),
    ("final_logit_softcapping", "final_logit_softcapping"),
)
_WINDOW = (("attention.sliding_window", "sliding_window"),)
_LAYER_NORM = "attention.layer_norm_epsilon"
_PARALLEL = ("use_parallel_residual", "use_parallel_residual")

FAMILIES: dict[str, Family] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": Family(MODEL_ARCH.QWEN2, (*_GROUPED, *_RMS), {"hidden_act": _SILU}),
    "qwen3": Family(
        MODEL_ARCH.QWEN3,
        (*_GROUPED, *_RMS, *_HEAD),
        {"hidden_act": _SILU, "attention_bias": (False,)},
    ),
    "gemma": Family(
        MODEL_ARCH.GEMMA,
        (*_GROUPED, *_RMS, *_HEAD),
        {**_GEMMA_ASSUMED, "hidden_act": (*_GELU_TANH, None)},
        raise_norms,
        lower_norms,
    ),
    "gemma2": Family(
        MODEL_ARCH.GEMMA2,
        (*_GROUPED, *_RMS, *_HEAD, *_SOFT_CAPS, *_WINDOW),
        _GEMMA_ASSUMED,
        raise_norms,
        lower_norms,
    ),
    "gemma3_text": Family(
        MODEL_ARCH.GEMMA3,
        (*_GROUPED, *_RMS, *_HEAD, *_WINDOW),
        {
            **_GEMMA_ASSUMED,
            "attn_logit_softcapping": (None,),
            "final_logit_softcapping": (None,),
            "use_bidirectional_attention": (False, None),
        },
        raise_norms,
        lower_norms,
    ),
    "stablelm": Family(
        MODEL_ARCH.STABLELM,
        (*_GROUPED, (_LAYER_NORM, "layer_norm_eps"), _PARALLEL),
        {"hidden_act": _SILU, "qk_layernorm": (False,)},
    ),
    "gpt_neox": Family(
        MODEL_ARCH.GPTNEOX,
        (*_COMMON, (_LAYER_NORM, "layer_norm_eps"), _PARALLEL),
        {"hidden_act": _GELU, "attention_bias": (True,)},
        ungroup,
        regroup,
    ),
    "falcon": Family(
        MODEL_ARCH.FALCON,
        (
            *_SIZES,
            ("feed_forward_length", "ffn_hidden_size"),
            (_LAYER_NORM, "layer_norm_epsilon"),
        ),
        {"activation": _GELU, "alibi": (False,), "parallel_attn": (True,), "bias": (False,)},
        ungroup_falcon,
        regroup_falcon,
    ),
    "gpt2": Family(
        MODEL_ARCH.GPT2,
        (*_SIZES, (_LAYER_NORM, "layer_norm_epsilon")),
        {
            "activation_function": _GELU_TANH,
            "scale_attn_weights": (True,),
            "scale_attn_by_inverse_layer_idx": (False,),
            "add_cross_attention": (False,),
        },
        transpose,
        transpose,
    ),
    "phi": Family(
        MODEL_ARCH.PHI2,
        (*_COMMON, (_LAYER_NORM, "layer_norm_eps")),
        {"hidden_act": _GELU_TANH, "qk_layernorm": (False,), "tie_word_embeddings": (False,)},
    ),
    "phi3": Family(MODEL_ARCH.PHI3, (*_GROUPED, *_RMS), {"hidden_act": _SILU}),
}


def family_of(config: PretrainedConfig) -> Family:
    """The family of a model. Raises ExportError where GGUF could not hold it as it is."""
    kind = str(config.model_type)
    family = FAMILIES.get(kind)
    if family is None:
        raise ExportError(
            f"a {kind} model cannot be written as GGUF here: known are "
            f"{', '.join(sorted(FAMILIES))}. Export it merged instead."
        )
    for name, allowed in family.assumed.items():
        value = getattr(config, name, allowed[0])
        if value not in allowed:
            raise ExportError(
                f"this {kind} model has {name} = {value!r}, and a GGUF file of its family always "
                f"means {allowed[0]!r}: it would answer otherwise. Export it merged instead."
            )
    size: Any = getattr(config, "head_dim", None)
    if size and _HEAD[0] not in family.fields:
        whole = int(config.hidden_size) // int(config.num_attention_heads)
        if size != whole:
            raise ExportError(
                f"this {kind} model has heads of {size}, and a GGUF file of its family always "
                f"means {whole} (its width over its heads): export it merged instead"
            )
    if kind in _LARGEST:
        _check_gemma(config)
    return family


def attention_scale(kind: str, keys: Mapping[str, Any]) -> int:
    """The size whose root divides attention's scores in Gemma 2 and 3: llama.cpp works it out."""
    if int(keys["block_count"]) == _LARGEST[kind]:
        return int(keys["embedding_length"]) // int(keys["attention.head_count"])
    return int(keys["attention.key_length"])


def _check_gemma(config: PretrainedConfig) -> None:
    """What llama.cpp works out for Gemma 2 and 3 by itself must be what the model does."""
    kind = str(config.model_type)
    keys = {
        "block_count": config.num_hidden_layers,
        "embedding_length": config.hidden_size,
        "attention.head_count": config.num_attention_heads,
        "attention.key_length": config.head_dim,
    }
    size = attention_scale(kind, keys)
    if config.query_pre_attn_scalar != size:
        raise ExportError(
            f"this model scales its attention by query_pre_attn_scalar = "
            f"{config.query_pre_attn_scalar}, and llama.cpp takes {size} for granted: "
            "export it merged instead"
        )
    every = {"gemma2": 2, "gemma3_text": 6}[kind]
    full = [i for i, layer in enumerate(config.layer_types) if layer == "full_attention"]
    if full != list(range(every - 1, int(config.num_hidden_layers), every)):
        raise ExportError(
            f"llama.cpp takes full attention in every {every}th layer for granted, and this model "
            "has it elsewhere: export it merged instead"
        )


# The one size of each family whose heads are scaled otherwise, by its number of layers.
_LARGEST = {"gemma2": 46, "gemma3_text": 62}
