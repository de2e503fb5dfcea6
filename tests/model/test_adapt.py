"""Adapters: equal to the base at their start, equal merged, and readable by PEFT both ways."""

from __future__ import annotations

import weakref
from pathlib import Path

import pytest
import torch
from conftest import build_model
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from timechat.errors import CheckpointError, ModelError
from timechat.export.weights import Weights
from timechat.model.adapt import adapters, attach, disabled, merge, merged, set_strength
from timechat.model.peft import load_adapter, save_adapter
from timechat.model.quantise import quantise

IDS = torch.tensor([[5, 9, 200, 31, 7, 7, 90]])


def logits(model: torch.nn.Module) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def stir(model: torch.nn.Module) -> None:
    """Give the adapters an effect."""
    torch.manual_seed(1)
    for layer in adapters(model).values():
        torch.nn.init.normal_(layer.lora_b, std=0.1)


def test_an_adapter_at_its_start_equals_its_base() -> None:
    before = logits(build_model())
    model = build_model()
    attach(model, 4, 8.0, "all")
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize(("targets", "count"), [("all", 14), ("attention", 8), ("mlp", 6)])
def test_targets_choose_layers_and_never_the_head(targets: str, count: int) -> None:
    model = build_model(tie_word_embeddings=False)
    attach(model, 2, 4.0, targets)
    assert len(adapters(model)) == count
    assert not any("head" in name for name in adapters(model))


def test_only_adapters_learn() -> None:
    model = build_model()
    num_trained = attach(model, 2, 4.0, "all")
    named = [name for name, p in model.named_parameters() if p.requires_grad]
    assert all("lora_" in name for name in named)
    assert num_trained == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_the_same_seed_gives_the_same_start_and_leaves_torchs_own() -> None:
    first, second = build_model(), build_model()
    attach(first, 4, 8.0, "all", seed=3)
    state = torch.random.get_rng_state()
    attach(second, 4, 8.0, "all", seed=3)
    assert torch.equal(torch.random.get_rng_state(), state)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_merged_equals_unmerged() -> None:
    model = build_model()
    attach(model, 4, 8.0, "all")
    stir(model)
    expected = logits(model)
    merge(model)
    assert not adapters(model)
    torch.testing.assert_close(logits(model), expected, rtol=1e-5, atol=1e-5)


def test_a_merged_block_leaves_everything_as_it_was() -> None:
    model = build_model()
    attach(model, 4, 8.0, "all")
    stir(model)
    expected = logits(model)
    with merged(model):
        assert not torch.equal(logits(model), expected)
    assert torch.equal(logits(model), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_merged_block_answers_as_the_merged_model(dtype: torch.dtype) -> None:
    model = build_model().to(dtype)
    attach(model, 4, 8.0, "all")
    stir(model)
    with merged(model):
        expected = logits(model)
    merge(model)
    assert torch.equal(logits(model), expected)


def test_what_a_merged_block_is_told_to_round_is_rounded_by_layer() -> None:
    model = build_model()
    attach(model, 4, 8.0, "mlp")
    stir(model)
    seen: list[str] = []

    def to_zero(name: str, weight: Tensor) -> Tensor:
        seen.append(name)
        return torch.zeros_like(weight)

    with merged(model, to_zero):
        nothing = logits(model)
    assert seen == list(adapters(model))
    merge(model)
    for name, parameter in model.named_parameters():
        if ".mlp." in name:
            parameter.data.zero_()
    assert torch.equal(logits(model), nothing)


def test_a_merged_block_holds_one_folded_weight_at_a_time() -> None:
    model = build_model()
    attach(model, 4, 8.0, "all")
    alive: weakref.WeakSet[Tensor] = weakref.WeakSet()
    most = 0

    def count(_: str, weight: Tensor) -> Tensor:
        nonlocal most
        alive.add(weight)
        most = max(most, len(alive))
        return weight

    with merged(model, count):
        logits(model)
    assert most == 1


def test_disabled_and_zero_strength_are_the_base() -> None:
    base = logits(build_model())
    model = build_model()
    attach(model, 4, 8.0, "all")
    stir(model)
    with disabled(model):
        assert torch.equal(logits(model), base)
    set_strength(model, 0.0)
    assert torch.equal(logits(model), base)


def test_peft_loads_what_we_save(tiny_base: Path, tmp_path: Path) -> None:
    model = build_model()
    attach(model, 4, 8.0, "all")
    stir(model)
    save_adapter(model, tmp_path, str(tiny_base), "digest", "all")
    theirs = PeftModel.from_pretrained(build_model(), tmp_path)
    torch.testing.assert_close(logits(theirs), logits(model), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rslora", [False, True])
def test_we_load_what_peft_saves(tmp_path: Path, rslora: bool) -> None:
    config = LoraConfig(
        r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], use_rslora=rslora
    )
    theirs = get_peft_model(build_model(), config)
    for name, parameter in theirs.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    theirs.eval().save_pretrained(tmp_path)
    ours = build_model()
    load_adapter(ours, tmp_path)
    torch.testing.assert_close(logits(ours), logits(theirs), rtol=1e-5, atol=1e-5)


def test_an_adapter_of_another_base_is_refused(tmp_path: Path) -> None:
    model = build_model(hidden_size=64)
    attach(model, 4, 8.0, "all")
    save_adapter(model, tmp_path, "elsewhere", "digest", "all")
    with pytest.raises(CheckpointError, match="wrong shape"):
        load_adapter(build_model(), tmp_path)


def test_a_model_without_such_layers_is_refused() -> None:
    with pytest.raises(ModelError, match="no linear layer"):
        attach(torch.nn.Embedding(3, 4), 2, 4.0, "mlp")


def test_a_model_of_other_layers_is_refused_with_what_works() -> None:
    class Odd(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(3, 4))

    with pytest.raises(ModelError, match=r"Odd.*its matrices are Odd.*adapt.method=full works"):
        attach(Odd(), 4, 8.0, "all")


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=264, n_embd=32, n_layer=2, n_head=2, n_positions=64)
    config.bos_token_id = config.eos_token_id = 0
    return GPT2LMHeadModel(config).eval()


@pytest.mark.parametrize("bits", [None, 4, 8])
def test_a_layer_that_holds_its_weight_turned_is_adapted_and_merged_alike(bits: int | None) -> None:
    model, ids = gpt2(), torch.tensor([[5, 9, 200, 31, 7]])
    names = set(model.state_dict())
    if bits:
        quantise(model, bits, but=model.lm_head)
    attach(model, 4, 8.0, "all")
    assert len(adapters(model)) == 8
    for layer in adapters(model).values():
        torch.nn.init.normal_(layer.lora_b, std=0.1)
    with torch.no_grad():
        expected = model(ids).logits
        with merged(model):
            torch.testing.assert_close(model(ids).logits, expected, rtol=1e-4, atol=1e-4)
        assert torch.equal(model(ids).logits, expected)
        merge(model)
        torch.testing.assert_close(model(ids).logits, expected, rtol=1e-4, atol=1e-4)
    if bits is None:  # what is saved then is a GPT-2 like any other
        assert set(model.state_dict()) == names


def test_files_of_turned_weights_are_merged_like_the_model(tmp_path: Path) -> None:
    model = gpt2()
    model.save_pretrained(tmp_path / "base")
    attach(model, 4, 8.0, "all")
    for layer in adapters(model).values():
        torch.nn.init.normal_(layer.lora_b, std=0.1)
    (tmp_path / "adapter").mkdir()
    save_adapter(model, tmp_path / "adapter", str(tmp_path / "base"), "digest", "all")
    found = Weights(tmp_path / "base", tmp_path / "adapter")
    merge(model)
    wanted = {name.removeprefix("transformer."): p for name, p in model.named_parameters()}
    assert len(found.adapted) == 8
    for name in found.entries:
        short = name.removeprefix("transformer.")
        torch.testing.assert_close(found.exact(name), wanted[short].detach(), rtol=1e-6, atol=1e-6)
