"""Every family reads packed rows as it reads each row alone, or is refused: never silently wrong.

Tiny random models of the real architectures, in fp32, against plain transformers.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from timechat.data.pack import Example, pack
from timechat.errors import ModelError
from timechat.model.adapt import adapters, attach
from timechat.model.head import head_of, hidden_states, nats
from timechat.model.paths import Path, path_of, row_limit

SIZES: dict[str, Any] = {
    "vocab_size": 101,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA: dict[str, Any] = {"intermediate_size": 48, "num_key_value_heads": 2}
SMALL_HEADS = {**LLAMA, "head_dim": 8}
# Name: model type, its own settings, the way it is read.
FAMILIES: dict[str, tuple[str, dict[str, Any], Path]] = {
    "llama-1": ("llama", {**LLAMA, "num_key_value_heads": 4, "rms_norm_eps": 1e-6}, Path.PACKED),
    "llama-2": ("llama", {**LLAMA, "rms_norm_eps": 1e-5}, Path.PACKED),
    "llama-2-tied": ("llama", {**LLAMA, "tie_word_embeddings": True}, Path.PACKED),
    "open-llama": ("llama", {**LLAMA, "head_dim": 10}, Path.PACKED),
    "falcon-7b": (
        "falcon",
        {"ffn_hidden_size": 64, "multi_query": True, "parallel_attn": True, "bias": False},
        Path.MASKED,
    ),
    "falcon-40b": (
        "falcon",
        {"ffn_hidden_size": 64, "new_decoder_architecture": True, "num_kv_heads": 2},
        Path.MASKED,
    ),
    "falcon-rw": (
        "falcon",
        {
            "ffn_hidden_size": 64,
            "alibi": True,
            "multi_query": False,
            "parallel_attn": False,
            "bias": True,
        },
        Path.PADDED,
    ),
    "stablelm": ("stablelm", LLAMA, Path.PACKED),
    "stablelm-2-12b": (
        "stablelm",
        {**LLAMA, "use_parallel_residual": True, "qk_layernorm": True, "use_qkv_bias": True},
        Path.PACKED,
    ),
    "pythia": ("gpt_neox", {"intermediate_size": 64}, Path.PACKED),
    "mistral": ("mistral", {**LLAMA, "sliding_window": None}, Path.PACKED),
    "mistral-sliding": ("mistral", {**LLAMA, "sliding_window": 4}, Path.PACKED),
    "mixtral": ("mixtral", {**LLAMA, "num_local_experts": 4}, Path.PACKED),
    "phimoe": ("phimoe", {**LLAMA, "num_local_experts": 4}, Path.PACKED),
    "qwen2": ("qwen2", LLAMA, Path.PACKED),
    "qwen2-sliding": (
        "qwen2",
        {**LLAMA, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
        Path.PACKED,
    ),
    "qwen3": ("qwen3", SMALL_HEADS, Path.PACKED),
    "gemma": ("gemma", SMALL_HEADS, Path.PACKED),
    "gemma2": (
        "gemma2",
        {
            **SMALL_HEADS,
            "sliding_window": 4,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
            "query_pre_attn_scalar": 16,
        },
        Path.PACKED,
    ),
    "gemma3": (
        "gemma3_text",
        {
            **SMALL_HEADS,
            "sliding_window": 4,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        Path.PACKED,
    ),
    "phi": ("phi", {"intermediate_size": 48, "partial_rotary_factor": 0.5}, Path.PACKED),
    "phi3": ("phi3", LLAMA, Path.PACKED),
    "phi3-sliding": ("phi3", {**LLAMA, "sliding_window": 4}, Path.PACKED),
    "gpt-2": ("gpt2", {}, Path.PACKED),
    "opt": ("opt", {"ffn_dim": 48, "word_embed_proj_dim": 32}, Path.PACKED),
    "opt-350m": (
        "opt",
        {"ffn_dim": 48, "word_embed_proj_dim": 16, "do_layer_norm_before": False},
        Path.PACKED,
    ),
    "bloom": ("bloom", {}, Path.PADDED),
    "mpt": ("mpt", {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 128}, Path.PADDED),
    "gpt-j": ("gptj", {"rotary_dim": 4}, Path.PACKED),
    "gpt-neo": (
        "gpt_neo",
        {"attention_types": [[["global", "local"], 1]], "window_size": 4, "intermediate_size": 48},
        Path.PADDED,
    ),
    "olmo": ("olmo", {**LLAMA, "clip_qkv": 0.5}, Path.PACKED),
    "olmo2": ("olmo2", LLAMA, Path.PACKED),
    "granite": (
        "granite",
        {
            **LLAMA,
            "logits_scaling": 4.0,
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.5,
            "attention_multiplier": 0.2,
        },
        Path.PACKED,
    ),
    "cohere": ("cohere", {**LLAMA, "logit_scale": 0.25, "use_qk_norm": True}, Path.PACKED),
    "cohere2": ("cohere2", {**LLAMA, "logit_scale": 0.25, "sliding_window": 4}, Path.PACKED),
    "smollm3": ("smollm3", {**LLAMA, "no_rope_layers": [1, 0]}, Path.PACKED),
    "starcoder2": ("starcoder2", {**LLAMA, "sliding_window": 4}, Path.PACKED),
    "gpt-oss": (
        "gpt_oss",
        {**SMALL_HEADS, "sliding_window": 4, "num_local_experts": 4, "num_experts_per_tok": 2},
        Path.PACKED,
    ),
}
PREFIX = (5, 9, 2, 7, 7, 3, 1, 8, 4)
ENDS = [(11, 12, 13), (20, 21), (30, 31, 32, 33, 34, 35)]


def build(family: str) -> PreTrainedModel:
    kind, settings, _ = FAMILIES[family]
    torch.manual_seed(0)
    sizes = {k: v for k, v in SIZES.items() if kind != "mpt" or "hidden" not in k}
    config = AutoConfig.for_model(kind, **{**sizes, **settings})
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    return model


def rows(*ends: tuple[int, ...]) -> list[Example]:
    return [
        Example((*PREFIX, *end), (0.0,) * (len(PREFIX) + 1) + (1.0,) * (len(end) - 1), str(i))
        for i, end in enumerate(ends or ENDS)
    ]


def adapted(family: str) -> PreTrainedModel:
    model = build(family)
    attach(model, 4, 8.0, "all")
    for layer in adapters(model).values():
        torch.nn.init.normal_(layer.lora_b, std=0.1)
    return model


def alone(model: PreTrainedModel, group: list[Example]) -> torch.Tensor:
    """Summed nats of each row by itself through plain transformers: the independent reference."""
    total = torch.zeros(())
    for row in group:
        ids = torch.tensor([row.ids])
        logits = model(input_ids=ids).logits[0, :-1].float()
        losses = F.cross_entropy(logits, ids[0, 1:], reduction="none")
        total = total + (losses * torch.tensor(row.weights[1:])).sum()
    return total


@pytest.mark.parametrize("share", [True, False], ids=["shared-opening", "each-its-own"])
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_loss_and_gradients_equal_each_row_alone(family: str, share: bool) -> None:
    model = adapted(family)
    batch = pack(rows(), share_prefix=share)
    hidden = hidden_states(model, batch.ids, batch.layout, batch.target_index)
    assert path_of(model) is FAMILIES[family][2]
    found = nats(hidden, head_of(model), batch.targets, batch.weights)
    expected = alone(model, rows())
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    parameters = [p for p in model.parameters() if p.requires_grad]
    one, two = (torch.autograd.grad(loss, parameters) for loss in (found, expected))
    flat = [torch.cat([g.flatten() for g in grads]) for grads in (one, two)]
    assert float((flat[0] - flat[1]).norm() / flat[1].norm()) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_no_token_attends_to_another_conversation(family: str) -> None:
    model = build(family)

    def hidden(*ends: tuple[int, ...]) -> torch.Tensor:
        batch = pack(rows(*ends))
        everywhere = torch.arange(batch.ids.shape[1])
        with torch.no_grad():
            return hidden_states(model, batch.ids, batch.layout, everywhere)

    before, after = hidden(*ENDS), hidden(ENDS[0], (40, 41), ENDS[2])
    changed = slice(len(PREFIX) + 3, len(PREFIX) + 5)
    kept = torch.ones(len(before), dtype=torch.bool)
    kept[changed] = False
    # Experts work on groups whose size depends on all rows, and a product's rounding on its size.
    rounding = 1e-6 if family in ("mixtral", "gpt-oss") else 0.0
    torch.testing.assert_close(before[kept], after[kept], rtol=rounding, atol=rounding)
    assert not torch.equal(before[changed], after[changed])


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_of_equal_length_do_not_see_each_other(family: str) -> None:
    model = build(family)
    group = rows((11, 12, 13), (20, 21, 22), (30, 31, 32), (40, 41, 42))
    batch = pack(group)
    with torch.no_grad():
        hidden = hidden_states(model, batch.ids, batch.layout, batch.target_index)
        found = nats(hidden, head_of(model), batch.targets, batch.weights)
        torch.testing.assert_close(found, alone(model, group), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["mamba", "rwkv", "recurrent_gemma"])
def test_a_recurrent_model_is_refused_by_name_with_the_reason(kind: str) -> None:
    config = AutoConfig.for_model(kind, vocab_size=101, hidden_size=32, num_hidden_layers=2)
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(ModelError, match=f"{kind} is recurrent"):
        path_of(model)


def test_a_token_without_an_embedding_is_refused_with_its_number() -> None:
    model = build("llama-2")
    batch = pack([Example((1, 101, 3), (0.0, 0.0, 1.0), "x")])
    with pytest.raises(ModelError, match="token 101 has no embedding: the model knows 101"):
        hidden_states(model, batch.ids, batch.layout, batch.target_index)


SCALED = {
    "dynamic": ("llama", LLAMA, {"factor": 2.0}),
    "longrope": ("phi3", LLAMA, {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}),
}


def scaled(kind: str) -> PreTrainedModel:
    """A model whose positions turn otherwise beyond 32 tokens."""
    name, own, rope = SCALED[kind]
    rope = {
        "rope_type": kind,
        "rope_theta": 10_000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 32,
        **rope,
    }
    window = 32 if kind == "dynamic" else 128
    own = {**own, "max_position_embeddings": window, "rope_parameters": rope}
    if kind == "longrope":
        own["original_max_position_embeddings"] = 32
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, **{**SIZES, **own})
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("kind", SCALED)
def test_a_row_that_would_change_its_company_is_refused_with_the_limit(kind: str) -> None:
    """Read together all rows would turn as the longest does; alone each turns by its own length."""
    model = scaled(kind)
    short, long = (Example(tuple(range(3, 3 + n)), (1.0,) * n, str(n)) for n in (12, 40))
    assert row_limit(model.config) == 32
    both = pack([short, long])
    with pytest.raises(ModelError, match="at most that"):
        hidden_states(model, both.ids, both.layout, both.target_index)
    alone = pack([long])
    found = hidden_states(model, alone.ids, alone.layout, alone.target_index)
    expected = model.model(input_ids=alone.ids).last_hidden_state[0, :-1]
    assert torch.allclose(found, expected, atol=1e-5)


def test_other_models_take_rows_of_any_length_together() -> None:
    config = AutoConfig.for_model("llama", **{**SIZES, **LLAMA})
    assert row_limit(config) is None


def test_a_family_whose_layers_are_not_where_it_says_is_refused_by_name() -> None:
    own = {**SMALL_HEADS, "intermediate_size_mlp": 48, "num_local_experts": 2}
    config = AutoConfig.for_model("llama4_text", **{**SIZES, **own})
    with pytest.raises(ModelError, match="Llama4ForCausalLM has no part called 'language_model'"):
        path_of(AutoModelForCausalLM.from_config(config))
