"""Adapted layers asked together give what each gives alone, forwards and backwards."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from timechat.model.adapt import LoraLinear, together
from timechat.model.quantise import QuantLinear

INPUTS, OUTPUTS = 48, (48, 16, 32)


def layers(kind: str = "dense", rank: int = 4) -> list[LoraLinear]:
    torch.manual_seed(0)
    found: list[LoraLinear] = []
    for size in OUTPUTS:
        plain = nn.Linear(INPUTS, size, bias=size == 16)
        base = QuantLinear(plain, 4) if kind == "coded" else plain
        layer = LoraLinear(base.requires_grad_(False), rank, 6.0)
        nn.init.normal_(layer.lora_b)
        found.append(layer)
    return found


def learn(ask, made: list[LoraLinear]) -> list[torch.Tensor]:
    """Outputs, then the gradients of x and of every A and B."""
    torch.manual_seed(1)
    x = torch.randn(1, 9, INPUTS, requires_grad=True)
    outputs = ask(made, x)
    loss = sum((y * torch.randn_like(y)).sum() for y in outputs)
    learned = [p for layer in made for p in (layer.lora_a, layer.lora_b)]
    return [*outputs, *torch.autograd.grad(loss, [x, *learned])]


def apart(made, x):
    return [layer(x) for layer in made]


@pytest.mark.parametrize("kind", ["dense", "coded"])
def test_together_is_as_apart(kind: str) -> None:
    for one, two in zip(learn(together, layers(kind)), learn(apart, layers(kind)), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)


def test_the_gradient_is_that_of_the_formula_written_out() -> None:
    def written(made, x):
        return [
            layer.base(x) + layer.scale * (x @ layer.lora_a.T) @ layer.lora_b.T for layer in made
        ]

    for one, two in zip(learn(together, layers()), learn(written, layers()), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)


def test_an_output_that_nobody_uses_teaches_nothing() -> None:
    made = layers()
    x = torch.randn(3, INPUTS)
    together(made, x)[0].sum().backward()
    assert made[0].lora_a.grad is not None
    for other in made[1:]:
        assert not other.lora_a.grad.any()
        assert not other.lora_b.grad.any()


@pytest.mark.parametrize("change", ["plain", "off", "folded", "strength", "rank"])
def test_layers_that_differ_keep_their_own_ways(change: str) -> None:
    made: list[nn.Module] = list(layers())
    if change == "plain":
        made[1] = made[1].base
    elif change == "off":
        made[1].enabled = False
    elif change == "folded":
        made[1].folding = torch.zeros_like
    elif change == "strength":
        made[1].alpha = 60.0
    else:
        made[1] = layers(rank=2)[1]
    x = torch.randn(2, 5, INPUTS)
    for one, two in zip(together(made, x), apart(made, x), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)
