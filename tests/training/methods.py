"""Methods and families for tests that hold for each: add a family or a method here once."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from timechat.data.pack import Example
from timechat.model.adapt import adapters, output_head
from timechat.model.method import Change, begin
from timechat.model.quantise import quantise
from timechat.model.ranks import ALONE, Ranks
from timechat.recipe import Recipe, parse_recipe

SIZES: dict[str, Any] = {
    "vocab_size": 101,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
LLAMA = {"intermediate_size": 48, "num_key_value_heads": 2}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "llama-tied": {**LLAMA, "tie_word_embeddings": True},
    "mistral": {**LLAMA, "sliding_window": None},
    "qwen2": LLAMA,
    "stablelm": LLAMA,
    "gpt_neox": {"intermediate_size": 64},
    "gemma": {**LLAMA, "head_dim": 8},
}
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"method": "lora", "rank": 4},
    "lora-mlp-last": {"method": "lora", "rank": 4, "targets": "mlp", "layers": 2, "rslora": True},
    "qlora": {"method": "qlora", "rank": 4},
    "full": {"method": "full"},
    "layers": {"method": "layers", "layers": 2},
    "layers-range": {"method": "layers", "layers": "1-2"},
    "layers-ends": {"method": "layers", "layers": [0, 3], "embeddings": True, "head": True},
}
PREFIX = (5, 9, 2, 7, 7, 3, 1, 8, 4)


def build(family: str, seed: int = 0) -> PreTrainedModel:
    """A tiny model of the family, in fp32, whose random weights are large enough to matter."""
    torch.manual_seed(seed)
    settings = {**SIZES, **FAMILIES[family]}
    config = AutoConfig.for_model(family.partition("-")[0], **settings)
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    return model


def base_for(method: str, family: str = "llama") -> PreTrainedModel:
    """The model that the method starts from: in 4 bits already where it would be put in 4 bits."""
    model = build(family)
    if METHODS[method]["method"] == "qlora":
        quantise(model, 4, but=output_head(model))
    return model


def section(method: str) -> Any:
    return recipe(method).adapt


def recipe(method: str, **train: Any) -> Recipe:
    return parse_recipe({"adapt": METHODS[method], "train": train})


def start(model: PreTrainedModel, method: str, stir: bool = False, ranks: Ranks = ALONE) -> Change:
    """Put the method on the model; `stir` gives adapters an effect."""
    change = begin(model, section(method), 8.0, 0, ranks)
    if stir:
        torch.manual_seed(1)
        for layer in adapters(model).values():
            torch.nn.init.normal_(layer.lora_b, std=0.1)
    return change


def rows() -> list[Example]:
    """Three rows that share an opening, their last tokens trained."""
    ends = [(11, 12, 13), (20, 21), (30, 31, 32, 33, 34, 35)]
    return [
        Example((*PREFIX, *end), (0.0,) * (len(PREFIX) + 1) + (1.0,) * (len(end) - 1), f"r{i}")
        for i, end in enumerate(ends)
    ]


def held() -> list[Example]:
    return [Example((40, 41, 42, 43), (0.0, 1.0, 1.0, 1.0), "h0")]


def alone(model: PreTrainedModel, examples: list[Example]) -> torch.Tensor:
    """Summed nats of each row by itself through plain transformers: the independent reference."""
    total = torch.zeros(())
    for row in examples:
        ids = torch.tensor([row.ids])
        logits = model(input_ids=ids).logits[0, :-1].float()
        losses = F.cross_entropy(logits, ids[0, 1:], reduction="none")
        total = total + (losses * torch.tensor(row.weights[1:])).sum()
    return total
