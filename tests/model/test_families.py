"""Packed rows equal rows alone in every family, or the family is refused: never silently wrong."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from timechat.data.pack import Example, pack
from timechat.errors import ModelError
from timechat.model.adapt import adapters, attach
from timechat.model.head import head_weight, hidden_states, nats

SIZES = {
    "vocab_size": 101,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
LLAMA = {"intermediate_size": 48, "num_key_value_heads": 2}
FAMILIES = {
    "llama": LLAMA,
    "mistral": {**LLAMA, "sliding_window": None},
    "qwen2": LLAMA,
    "stablelm": LLAMA,
    "gpt_neox": {"intermediate_size": 64},  # Pythia
    "falcon": {"ffn_hidden_size": 64},
    "phi": {"intermediate_size": 48},
    "gemma": {**LLAMA, "head_dim": 8},
}
PREFIX = (5, 9, 2, 7, 7, 3, 1, 8, 4)


def build(family: str) -> PreTrainedModel:
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **SIZES, **FAMILIES[family])
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    return model


def rows() -> list[Example]:
    ends = [(11, 12, 13), (20, 21), (30, 31, 32, 33, 34, 35)]
    return [
        Example((*PREFIX, *end), (0.0,) * (len(PREFIX) + 1) + (1.0,) * (len(end) - 1), str(i))
        for i, end in enumerate(ends)
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_rows_equal_rows_alone_or_the_family_is_refused(family: str) -> None:
    model = build(family)
    try:
        weight = head_weight(model)
        attach(model, 4, 8.0, "all")
        batch = pack(rows())
        hidden = hidden_states(model, batch.ids, batch.layout, batch.target_index)
    except ModelError as error:
        pytest.skip(f"refused, and said so: {error}")
    for layer in adapters(model).values():
        torch.nn.init.normal_(layer.lora_b, std=0.1)
    hidden = hidden_states(model, batch.ids, batch.layout, batch.target_index)
    found = nats(hidden, weight, batch.targets, batch.weights)
    expected = torch.zeros(())
    for row in rows():
        ids = torch.tensor([row.ids])
        logits = model(input_ids=ids).logits[0, :-1].float()
        losses = F.cross_entropy(logits, ids[0, 1:], reduction="none")
        expected = expected + (losses * torch.tensor(row.weights[1:])).sum()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    parameters = [p for p in model.parameters() if p.requires_grad]
    grads = [torch.autograd.grad(loss, parameters) for loss in (found, expected)]
    for one, two in zip(*grads, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4)
