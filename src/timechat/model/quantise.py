"""A frozen linear layer in 4 bits (NF4) or 8: plain PyTorch, on a CPU and a GPU alike.

Weights are cut into blocks of 64 along their rows laid end to end; each block is divided by its
largest absolute value, kept in fp32, and rounded to the nearest of 16 values that hold equal shares
of a normal distribution (Dettmers et al. 2023, arXiv:2305.14314, appendix E), or to one of 255
evenly spaced ones. The dense weights exist for one product at a time, in the input's format, and
again in the backward pass.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BLOCK = 64
# Two codes a byte, the first in the high half, as in bitsandbytes.
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
)  # fmt: skip


class QuantLinear(nn.Module):
    """A linear layer (out, in) whose weight is kept in `bits`; `dtype` is what it was."""

    codes: Tensor
    absmax: Tensor

    def __init__(self, linear: nn.Linear, bits: int) -> None:
        super().__init__()
        self.bits = bits
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.dtype = linear.weight.dtype
        codes, absmax = pack_codes(linear.weight.detach(), bits)
        self.register_buffer("codes", codes)
        self.register_buffer("absmax", absmax)
        self.bias = linear.bias

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        """The weight (out, in), as near as its codes come."""
        shape = (self.out_features, self.in_features)
        return unpack_codes(self.codes, self.absmax, self.bits, shape, dtype or self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, _Product.apply(x, self))


class _Product(torch.autograd.Function):
    """x Wᵀ + bias, where W is made anew for each pass and never kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantLinear) -> Tensor:
        ctx.layer = layer
        return F.linear(x, layer.dense(x.dtype), layer.bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] @ ctx.layer.dense(grads[0].dtype), None


def quantise(model: nn.Module, bits: int, but: nn.Module | None = None) -> None:
    """Put every linear layer of `model` except `but` (the head) in `bits`, one after the other."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear) and layer is not but:
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, QuantLinear(layer, bits))


def pack_codes(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """(codes, absmax (blocks,)) of a weight: two 4-bit codes a byte, or a signed byte each."""
    flat = weight.flatten().float()
    blocks = F.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)
    absmax = blocks.abs().amax(1)
    unit = blocks / absmax.clamp_min(torch.finfo(torch.float32).tiny)[:, None]
    if bits == 8:
        return (unit * 127).round_().to(torch.int8), absmax
    values = torch.tensor(NF4, device=weight.device)
    # The nearest value: how many of the midpoints lie below.
    codes = torch.bucketize(unit, (values[1:] + values[:-1]) / 2).to(torch.uint8)
    return (codes[:, ::2] << 4) | codes[:, 1::2], absmax


def unpack_codes(
    codes: Tensor, absmax: Tensor, bits: int, shape: tuple[int, int], dtype: torch.dtype
) -> Tensor:
    """The weight of `shape` in `dtype` that the codes stand for."""
    if bits == 8:
        blocks = codes.to(dtype).mul_((absmax / 127).to(dtype)[:, None])
    else:
        values = torch.tensor(NF4, device=codes.device)
        # Both values of every possible byte: one look-up gives two weights.
        pairs = torch.stack([values.repeat_interleave(16), values.repeat(16)], dim=1).to(dtype)
        found = pairs.index_select(0, codes.flatten().int())
        blocks = found.view(-1, BLOCK).mul_(absmax.to(dtype)[:, None])
    return blocks.flatten()[: shape[0] * shape[1]].view(shape)
