"""The forms by hand give the numbers and gradients of transformers' own modules."""

from __future__ import annotations

import pytest
import torch
from conftest import build_model
from test_families import SIZES, build
from transformers import GemmaConfig, GemmaForCausalLM

from timechat.model import fused
from timechat.model.fused import fuse
from timechat.model.load import still


def answers(model, dtype: torch.dtype) -> tuple[torch.Tensor, list[torch.Tensor]]:
    model = model.to(dtype)
    ids = torch.arange(3, 43).view(2, 20)
    logits = model(input_ids=ids).logits.float()
    parameters = [p for p in model.parameters() if p.requires_grad]
    return logits.detach(), list(torch.autograd.grad(logits.square().mean(), parameters))


@pytest.mark.parametrize(("dtype", "gap"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_a_fused_model_answers_and_learns_as_the_plain_one(dtype: torch.dtype, gap: float) -> None:
    model = build_model()
    logits, grads = answers(model, dtype)
    # Two norms, an MLP and an attention a layer, and the last norm.
    assert fuse(model) == 2 * 4 + 1
    found, slopes = answers(model, dtype)
    if dtype == torch.bfloat16:
        assert torch.equal(found, logits)  # not even the rounding differs on the way forward
    torch.testing.assert_close(found, logits, rtol=1e-5, atol=1e-5)
    for one, two in zip(slopes, grads, strict=True):
        assert float((one - two).norm()) <= gap * float(two.norm())


@pytest.mark.parametrize("family", ["mistral", "qwen2", "qwen3", "smollm3"])
def test_families_written_alike_are_fused_and_unchanged(family: str) -> None:
    model = build(family)
    logits, _ = answers(model, torch.float32)
    assert fuse(model) > 6
    torch.testing.assert_close(answers(model, torch.float32)[0], logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["llama-2", "gemma", "granite"])
def test_an_attention_written_alike_generates_the_same(family: str) -> None:
    model = build(family).eval()
    ids = torch.arange(3, 12)[None]
    plain = model.generate(ids, max_new_tokens=12, do_sample=False)
    fuse(model)
    assert "forward" in vars(model.model.layers[0].self_attn)
    assert torch.equal(model.generate(ids, max_new_tokens=12, do_sample=False), plain)


def test_an_attention_of_another_make_is_left_alone() -> None:
    model = build("qwen3")  # has norms of its own between product and turning
    fuse(model)
    assert "forward" not in vars(model.model.layers[0].self_attn)


def test_a_norm_of_another_make_is_left_alone() -> None:
    sizes = {**SIZES, "intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 8}
    model = GemmaForCausalLM(GemmaConfig(**sizes))
    fuse(model)
    assert "forward" not in vars(model.model.norm)


def test_without_sources_nothing_is_taken_for_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: object) -> str:
        raise OSError("could not get source code")

    monkeypatch.setattr(fused.inspect, "getsource", missing)
    fused._words.cache_clear()
    model = build("gemma")
    try:
        assert fuse(model) == 0
    finally:
        fused._words.cache_clear()


def test_an_exchanged_activation_is_obeyed() -> None:
    model = build_model()
    fuse(model)
    before, _ = answers(model, torch.float32)
    for layer in model.model.layers:
        layer.mlp.act_fn = torch.nn.ReLU()
    assert not torch.equal(answers(model, torch.float32)[0], before)


@pytest.mark.parametrize("family", ["opt", "phi", "bloom", "falcon-rw"])
def test_no_family_brings_chance_into_a_step(family: str) -> None:
    model = build(family).train()
    ids = torch.arange(3, 43).view(2, 20)
    still(model)
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)
