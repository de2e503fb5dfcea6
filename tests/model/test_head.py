"""The head's loss and gradients equal PyTorch's own, for every form of head that families have."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from timechat.errors import ModelError
from timechat.model.head import Head, divergence, nats

FORMS = [(1.0, None), (0.5, None), (1.0, 3.0), (0.25, 2.0)]


def drawn() -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    weight, bias = torch.randn(50, 8, requires_grad=True), torch.randn(50, requires_grad=True)
    hidden = torch.randn(30, 8, requires_grad=True)
    return hidden, weight, bias, torch.randint(0, 50, (30,)), torch.rand(30)


def plain_logits(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, scale: float, cap: float | None
) -> torch.Tensor:
    logits = (hidden @ weight.T + bias) * scale
    return logits if cap is None else cap * torch.tanh(logits / cap)


@pytest.mark.parametrize(("scale", "cap"), FORMS)
def test_nats_and_their_gradients_equal_cross_entropy(scale: float, cap: float | None) -> None:
    hidden, weight, bias, targets, weights = drawn()
    logits = plain_logits(hidden, weight, bias, scale, cap)
    expected = (F.cross_entropy(logits, targets, reduction="none") * weights).sum()
    found = nats(hidden, Head(weight, bias, scale, cap), targets, weights)
    torch.testing.assert_close(found, expected)
    learned = (hidden, weight, bias)
    for one, two in zip(
        torch.autograd.grad(found, learned), torch.autograd.grad(expected, learned), strict=True
    ):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize(("scale", "cap"), FORMS)
def test_divergence_equals_torchs_kl_in_every_form(scale: float, cap: float | None) -> None:
    hidden, weight, bias, _, weights = drawn()
    teacher = torch.randn(30, 8)
    rows = F.kl_div(
        plain_logits(hidden, weight, bias, scale, cap).log_softmax(-1),
        plain_logits(teacher, weight, bias, scale, cap).log_softmax(-1).detach(),
        reduction="none",
        log_target=True,
    ).sum(-1)
    expected = (rows * weights).sum()
    former = Head(weight.detach(), bias.detach(), scale, cap)
    found = divergence(hidden, Head(weight, bias, scale, cap), teacher, weights, former)
    torch.testing.assert_close(found, expected)
    learned = (hidden, weight, bias)
    for one, two in zip(
        torch.autograd.grad(found, learned), torch.autograd.grad(expected, learned), strict=True
    ):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize("label", [50, -1])
def test_a_label_outside_the_vocabulary_is_refused_with_its_number(label: int) -> None:
    hidden, weight, _, targets, weights = drawn()
    targets[3] = label
    with pytest.raises(ModelError, match=f"token {label} is outside .* of 50"):
        nats(hidden, Head(weight), targets, weights)


def test_targets_that_were_likeliest_are_counted_on_the_way() -> None:
    hidden, weight, bias, targets, weights = drawn()
    likeliest = plain_logits(hidden, weight, bias, 1.0, None).argmax(-1)
    right = torch.zeros(())
    nats(hidden, Head(weight, bias), targets, weights, right)
    assert int(right) == int((likeliest == targets).sum())
    nats(hidden, Head(weight, bias), likeliest, weights, right)
    assert int(right) == int((likeliest == targets).sum()) + len(targets)
