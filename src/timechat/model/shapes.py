"""The shapes of well-known models, as numbers: enough to plan a run before anything is downloaded.

From the configurations that their makers publish; whether a name that is not here can be planned is
the Hub's business (`skeleton` asks it for the configuration alone, never for weights).
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from timechat.errors import ModelError


def _llama(
    hidden: int, inner: int, layers: int, heads: int, keys: int | None = None, **more: Any
) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": keys or heads,
        "vocab_size": 32_000,
        "max_position_embeddings": 2048,
        **more,
    }


def _pythia(hidden: int, layers: int, heads: int, vocabulary: int = 50_304) -> dict[str, Any]:
    return {
        "model_type": "gpt_neox",
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "vocab_size": vocabulary,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
    }


def _falcon(hidden: int, layers: int, heads: int, **more: Any) -> dict[str, Any]:
    return {
        "model_type": "falcon",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "vocab_size": 65_024,
        "bias": False,
        "tie_word_embeddings": True,
        **more,
    }


_LLAMA_2: dict[str, Any] = {"max_position_embeddings": 4096, "rms_norm_eps": 1e-5}
_STABLELM: dict[str, Any] = {"model_type": "stablelm", "max_position_embeddings": 4096}
SHAPES: dict[str, dict[str, Any]] = {
    "huggyllama/llama-7b": _llama(4096, 11_008, 32, 32),
    "huggyllama/llama-13b": _llama(5120, 13_824, 40, 40),
    "huggyllama/llama-30b": _llama(6656, 17_920, 60, 52),
    "huggyllama/llama-65b": _llama(8192, 22_016, 80, 64),
    "meta-llama/Llama-2-7b-hf": _llama(4096, 11_008, 32, 32, **_LLAMA_2),
    "meta-llama/Llama-2-13b-hf": _llama(5120, 13_824, 40, 40, **_LLAMA_2),
    "meta-llama/Llama-2-70b-hf": _llama(8192, 28_672, 80, 64, 8, **_LLAMA_2),
    "openlm-research/open_llama_3b_v2": _llama(3200, 8640, 26, 32),
    "openlm-research/open_llama_7b_v2": _llama(4096, 11_008, 32, 32),
    "openlm-research/open_llama_13b": _llama(5120, 13_824, 40, 40),
    "tiiuae/falcon-rw-1b": _falcon(
        2048, 24, 32, vocab_size=50_304, alibi=True, multi_query=False, parallel_attn=False,
        bias=True, tie_word_embeddings=False,
    ),
    "tiiuae/falcon-7b": _falcon(4544, 32, 71, multi_query=True, parallel_attn=True),
    "tiiuae/falcon-40b": _falcon(
        8192, 60, 128, new_decoder_architecture=True, num_kv_heads=8, tie_word_embeddings=False
    ),
    "stabilityai/stablelm-2-1_6b": _llama(
        2048, 5632, 24, 32, **_STABLELM, vocab_size=100_352, use_qkv_bias=True
    ),
    "stabilityai/stablelm-3b-4e1t": _llama(2560, 6912, 32, 32, **_STABLELM, vocab_size=50_304),
    "stabilityai/stablelm-2-12b": _llama(
        5120, 13_824, 40, 32, 8, **_STABLELM, vocab_size=100_352,
        use_parallel_residual=True, qk_layernorm=True,
    ),
    "EleutherAI/pythia-70m": _pythia(512, 6, 8),
    "EleutherAI/pythia-160m": _pythia(768, 12, 12),
    "EleutherAI/pythia-410m": _pythia(1024, 24, 16),
    "EleutherAI/pythia-1b": _pythia(2048, 16, 8),
    "EleutherAI/pythia-1.4b": _pythia(2048, 24, 16),
    "EleutherAI/pythia-2.8b": _pythia(2560, 32, 32),
    "EleutherAI/pythia-6.9b": _pythia(4096, 32, 32, 50_432),
    "EleutherAI/pythia-12b": _pythia(5120, 36, 40, 50_688),
}  # fmt: skip


def skeleton(name: str) -> PreTrainedModel:
    """The model `name` without weights: every module with its shape, nothing in memory, in fp32.

    Raises ModelError when its shape is not known here and the Hub does not give it.
    """
    if name in SHAPES:
        numbers = dict(SHAPES[name])
        config = AutoConfig.for_model(numbers.pop("model_type"), **numbers)
    else:
        try:
            config = AutoConfig.from_pretrained(name)
        except (OSError, ValueError) as error:
            first = str(error).strip().splitlines()[0]
            raise ModelError(
                f"no shape of {name!r}: not a folder here, none of the {len(SHAPES)} models whose "
                f"shape is known, and the Hub did not give its configuration ({first})"
            ) from None
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)
