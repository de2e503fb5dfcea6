"""The products of adapted layers, with their gradients by hand.

y = x Wᵀ + bias + scale · (x Aᵀ) Bᵀ is many small operations beside one large one. Written out by
hand, the low-rank path is added in place, nothing is kept for the backward pass but x and x Aᵀ,
and layers that read the same x (queries, keys and values; gate and up) share one product with
their A's laid one under the other, and one gradient of x.

Axes: T tokens, r rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from timechat.model.quantise import QuantLinear


@dataclass(frozen=True, slots=True)
class Product:
    """One adapted layer: W (out, in) or its codes, bias (out,) or None, A (r, in), B (out, r)."""

    weight: Tensor | QuantLinear
    bias: Tensor | None
    a: Tensor
    b: Tensor


def adapted(x: Tensor, products: Sequence[Product], scale: float) -> tuple[Tensor, ...]:
    """What each of `products` makes of x (..., in); gradients reach x and every A and B."""
    flat = [part for product in products for part in _parts(product)]
    found = cast("tuple[Tensor, ...]", _Adapted.apply(x.flatten(0, -2), scale, *flat))
    return tuple(y.view(*x.shape[:-1], -1) for y in found)


class _Adapted(torch.autograd.Function):
    """x (T, in) to (T, out) of each product; every W stays frozen."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float, *flat: Any) -> tuple[Tensor, ...]:
        products = list(_products(flat))
        low_a = _stack([product.a for product in products]).to(x.dtype)
        low_b = [product.b.to(x.dtype) for product in products]
        inner = x @ low_a.T
        ctx.scale = scale
        ctx.weights = [product.weight for product in products]
        ctx.save_for_backward(x, inner, low_a, *low_b)
        ctx.ranks = [len(product.a) for product in products]
        return tuple(
            F.linear(x, _dense(product.weight, x.dtype), product.bias).addmm_(
                piece, b.T, alpha=scale
            )
            for product, piece, b in zip(products, inner.split(ctx.ranks, 1), low_b, strict=True)
        )

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        x, inner, low_a, *low_b = ctx.saved_tensors
        pairs = list(zip(grads, low_b, strict=True))
        grad_inner = _stack([grad @ b for grad, b in pairs], dim=1)
        grad_a = (grad_inner.T @ x).float().mul_(ctx.scale).split(ctx.ranks)
        grad_b = [
            (grad.T @ piece).float().mul_(ctx.scale)
            for grad, piece in zip(grads, inner.split(ctx.ranks, 1), strict=True)
        ]
        grad_x: Tensor | None = None
        if ctx.needs_input_grad[0]:
            for grad, weight in zip(grads, ctx.weights, strict=True):
                dense = _dense(weight, grad.dtype)
                grad_x = grad @ dense if grad_x is None else grad_x.addmm_(grad, dense)
            assert grad_x is not None
            grad_x.addmm_(grad_inner, low_a, alpha=ctx.scale)
        of_products = (
            part for a, b in zip(grad_a, grad_b, strict=True) for part in (None, None, a, b)
        )
        return grad_x, None, *of_products


def _parts(product: Product) -> tuple[Any, ...]:
    return product.weight, product.bias, product.a, product.b


def _products(flat: Sequence[Any]) -> Iterator[Product]:
    for i in range(0, len(flat), 4):
        yield Product(*flat[i : i + 4])


def _dense(weight: Tensor | QuantLinear, dtype: torch.dtype) -> Tensor:
    """The weight to multiply with; codes are made dense for each product, and never kept."""
    return weight.passing(dtype) if isinstance(weight, QuantLinear) else weight


def _stack(pieces: Sequence[Tensor], dim: int = 0) -> Tensor:
    return torch.cat(list(pieces), dim) if len(pieces) > 1 else pieces[0]
