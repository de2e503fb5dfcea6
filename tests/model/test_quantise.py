"""Quantised layers: against the paper's own construction, brute force, and dense products."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import build_model, build_tokenizer
from scipy.stats import norm
from torch import nn

from timechat.errors import ModelError
from timechat.model import quantise
from timechat.model.adapt import adapters, merge, merged
from timechat.model.load import Source, checked_folder, load
from timechat.model.method import begin, save_model
from timechat.model.quantise import NF4, QuantLinear, pack_codes, unpack_codes
from timechat.recipe import Qlora

IDS = torch.tensor([[5, 9, 200, 31, 7, 7, 90]])


def test_the_sixteen_values_are_the_papers() -> None:
    """Quantiles of the normal distribution at evenly spaced shares, nought among them."""
    offset = 0.9677083
    above = norm.ppf(torch.linspace(offset, 0.5, 9)[:-1].numpy())
    below = -norm.ppf(torch.linspace(offset, 0.5, 8)[:-1].numpy())
    values = torch.tensor([*below, 0.0, *above[::-1]])
    torch.testing.assert_close(
        torch.tensor(NF4, dtype=torch.float64), values / values.max(), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("shape", [(8, 64), (5, 7), (64, 96)])
def test_each_weight_gets_the_nearest_value_of_its_block(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    weight = torch.randn(shape)
    codes, absmax = pack_codes(weight, 4)
    found = unpack_codes(codes, absmax, 4, shape, torch.float32)
    flat = weight.flatten()
    for start in range(0, len(flat), 64):
        block = flat[start : start + 64]
        largest = block.abs().max()
        nearest = [min(NF4, key=lambda v: abs(float(w / largest) - v)) for w in block]
        expected = torch.tensor(nearest) * largest
        torch.testing.assert_close(found.flatten()[start : start + 64], expected)


@pytest.mark.parametrize(("bits", "bound"), [(4, 0.16), (8, 0.5 / 127 + 1e-6)])
def test_no_weight_moves_further_than_half_a_gap(bits: int, bound: float) -> None:
    torch.manual_seed(0)
    weight = torch.randn(32, 64)
    found = unpack_codes(*pack_codes(weight, bits), bits, (32, 64), torch.float32)
    gap = (found - weight).abs() / weight.abs().amax(1, keepdim=True)
    assert gap.max() <= bound


def test_zeros_stay_zeros_and_bytes_are_half_a_weight() -> None:
    codes, absmax = pack_codes(torch.zeros(4, 64), 4)
    assert not unpack_codes(codes, absmax, 4, (4, 64), torch.float32).any()
    assert codes.numel() * codes.element_size() == 128
    assert codes.dtype == torch.uint8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bits", [4, 8])
def test_how_weights_are_cut_into_tiles_changes_no_bit(
    bits: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    weight = torch.randn(37, 70)
    whole = pack_codes(weight, bits)
    expected = unpack_codes(*whole, bits, (37, 70), dtype)
    monkeypatch.setattr("timechat.model.quantise.TILE", 256)
    for one, two in zip(pack_codes(weight, bits), whole, strict=True):
        assert torch.equal(one, two)
    assert torch.equal(unpack_codes(*whole, bits, (37, 70), dtype), expected)


def test_layers_share_the_memory_of_their_dense_weights_and_no_number() -> None:
    torch.manual_seed(0)
    large, small = (QuantLinear(nn.Linear(64, n), 4) for n in (9, 5))
    with torch.inference_mode():
        small.passing(torch.float32)
    kept = large.passing(torch.float32)
    assert torch.equal(kept, large.dense())
    assert small.passing(torch.float32).data_ptr() == kept.data_ptr() != large.dense().data_ptr()


@pytest.mark.parametrize("bits", [4, 8])
def test_a_layer_and_its_gradient_equal_the_dense_product(bits: int) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(70, 9)
    layer = QuantLinear(linear, bits)
    dense = nn.functional.linear
    x = torch.randn(3, 70, requires_grad=True)
    expected = dense(x, layer.dense(), linear.bias)
    assert torch.equal(layer(x), expected)
    ones = [torch.autograd.grad(out.square().sum(), x)[0] for out in (layer(x), expected)]
    torch.testing.assert_close(*ones)


@pytest.mark.parametrize("bits", [4, 8])
def test_adapters_beside_codes_equal_adapters_beside_the_dense_weights(bits: int) -> None:
    model = build_model()
    begin(model, Qlora(rank=4, bits=bits), 8.0, 0)
    for layer in adapters(model).values():
        nn.init.normal_(layer.lora_b, std=0.1)
    with torch.no_grad():
        found = model(IDS).logits
        with merged(model):
            torch.testing.assert_close(model(IDS).logits, found, rtol=1e-4, atol=1e-4)
        assert torch.equal(model(IDS).logits, found)


@pytest.mark.parametrize("best", [torch.float32, torch.bfloat16])
def test_beside_codes_the_rest_computes_in_the_best_format_and_merges_back(
    best: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(quantise, "pick_dtype", lambda count: asked.append(count) or best)
    model = build_model().bfloat16()
    begin(model, Qlora(rank=4), 8.0, 0)
    rest = {name: p for name, p in model.named_parameters() if "lora" not in name}
    assert asked == [sum(p.numel() for p in rest.values())]
    assert {p.dtype for p in rest.values()} == {best}
    assert all(layer.base.absmax.dtype == torch.float32 for layer in adapters(model).values())
    with torch.no_grad():
        expected = model(IDS).logits
        assert expected.dtype == best
        merge(model)
        assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
        torch.testing.assert_close(model(IDS).logits.float(), expected.float(), rtol=0.1, atol=0.1)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_checkpoint_is_served_beside_the_same_codes(
    bits: int, tiny_base: Path, tmp_path: Path
) -> None:
    model = load(Source("x", tiny_base)).model
    begin(model, Qlora(rank=4, bits=bits), 8.0, 0)
    for layer in adapters(model).values():
        nn.init.normal_(layer.lora_b, std=0.1)
    folder = tmp_path / "out"
    folder.mkdir()
    save_model(model, folder, str(tiny_base), "digest", "all")
    build_tokenizer().save_pretrained(folder)
    found = load(Source("x", tiny_base, folder)).model
    with torch.no_grad():
        assert torch.equal(found(IDS).logits, model(IDS).logits)


def test_a_base_that_is_quantised_already_is_refused(tiny_base: Path) -> None:
    config = (tiny_base / "config.json").read_text()
    (tiny_base / "config.json").write_text(
        config.replace("{", '{"quantization_config": {"quant_method": "gptq"},', 1)
    )
    with pytest.raises(ModelError, match="quantised already"):
        checked_folder(tiny_base)
