"""A frozen linear layer in 4 bits (NF4) or 8: plain PyTorch, on a CPU and a GPU alike.

Weights are cut into blocks of 64 along their rows laid end to end; each block is divided by its
largest absolute value, kept in fp32, and rounded to the nearest of 16 values that hold equal shares
of a normal distribution (Dettmers et al. 2023, arXiv:2305.14314, appendix E), or to one of 255
evenly spaced ones. The dense weights exist for one product at a time, in the input's format, and
again in the backward pass; they are made a tile at a time, so that each tile stays in the cache
between its look-up and its scaling, and in memory that all layers share.
"""

from __future__ import annotations

import threading
from functools import cache
from itertools import pairwise
from typing import Any, TypeGuard, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from timechat.model.mapped import forget
from timechat.model.number_format import pick_dtype

BLOCK = 64
# Weights made dense at a time on a CPU: with their codes, about the size of its cache (LAB.md).
TILE = 2**20
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

    def __init__(self, linear: nn.Linear | Conv1D, bits: int) -> None:
        super().__init__()
        self.bits = bits
        self.in_features, self.out_features = features(linear)
        self.dtype = linear.weight.dtype
        codes, absmax = pack_codes(upright(linear).detach(), bits)
        self.register_buffer("codes", codes)
        self.register_buffer("absmax", absmax)
        self.bias = linear.bias

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        """The weight (out, in), as near as its codes come."""
        shape = (self.out_features, self.in_features)
        return unpack_codes(self.codes, self.absmax, self.bits, shape, dtype or self.dtype)

    def passing(self, dtype: torch.dtype) -> Tensor:
        """As `dense`, in memory that the thread's next one takes again: for one product.

        Fresh pages would cost more than the arithmetic on them.
        """
        shape = (self.out_features, self.in_features)
        place = _borrow(len(self.absmax) * BLOCK, dtype, self.codes.device)
        return unpack_codes(self.codes, self.absmax, self.bits, shape, dtype, place)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, _Product.apply(x, self))


class _Product(torch.autograd.Function):
    """x Wᵀ + bias, where W is made anew for each pass and never kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantLinear) -> Tensor:
        ctx.layer = layer
        return F.linear(x, layer.passing(x.dtype), layer.bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] @ ctx.layer.passing(grads[0].dtype), None


def quantise(model: nn.Module, bits: int, but: nn.Module | None = None) -> None:
    """Put every linear layer of `model` except `but` (the head) in `bits`, one after the other.

    What is not in codes then computes in the format that is best for so few numbers.
    """
    for name, layer in list(model.named_modules()):
        if is_product(layer) and layer is not but:
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, QuantLinear(layer, bits))
            forget(layer.weight)
    if pick_dtype(sum(p.numel() for p in model.parameters())) == torch.float32:
        model.float()


# One layer of each other kind is tried: a large base is not read for it.
_products: dict[type[nn.Module], bool] = {nn.Linear: True, Conv1D: True}


def is_product(layer: nn.Module) -> TypeGuard[nn.Linear | Conv1D]:
    """Whether `layer` is a linear layer and no more: some families' routers inherit from one, and
    give several results."""
    if not isinstance(layer, nn.Linear | Conv1D):
        return False
    kind = type(layer)
    if kind not in _products:
        num_in, num_out = features(layer)
        with torch.no_grad():
            found = layer(layer.weight.new_zeros(1, num_in))
        _products[kind] = isinstance(found, Tensor) and found.shape == (1, num_out)
    return _products[kind]


def features(layer: nn.Linear | Conv1D | QuantLinear) -> tuple[int, int]:
    """How many numbers go in and come out."""
    if isinstance(layer, Conv1D):
        return int(layer.nx), int(layer.nf)
    return layer.in_features, layer.out_features


def upright(layer: nn.Linear | Conv1D) -> Tensor:
    """The weight (out, in), in place: GPT-2's Conv1D holds it turned."""
    return layer.weight.T if isinstance(layer, Conv1D) else layer.weight


def pack_codes(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """(codes, absmax (blocks,)) of a weight: two 4-bit codes a byte, or a signed byte each."""
    # In parts: the numbers in between are several times the weight's size.
    parts = [_pack(part, bits) for part in weight.flatten().split(TILE // 4)]
    codes, absmax = zip(*parts, strict=True)
    return torch.cat(codes), torch.cat(absmax)


def _pack(flat: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    flat = flat.float()
    blocks = F.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)
    absmax = blocks.abs().amax(1)
    unit = blocks / absmax.clamp_min(torch.finfo(torch.float32).tiny)[:, None]
    if bits == 8:
        return (unit * 127).round_().to(torch.int8), absmax
    codes = torch.zeros(unit.shape, dtype=torch.uint8, device=flat.device)
    # The nearest value: how many of the midpoints lie below. Fifteen comparisons of a whole tile
    # are faster than a search for each weight.
    for low, high in pairwise(torch.tensor(NF4)):
        codes += unit > (low + high) / 2
    return (codes[:, ::2] << 4) | codes[:, 1::2], absmax


def unpack_codes(
    codes: Tensor,
    absmax: Tensor,
    bits: int,
    shape: tuple[int, int],
    dtype: torch.dtype,
    place: Tensor | None = None,
) -> Tensor:
    """The weight of `shape` in `dtype` that the codes stand for, written to `place` where given."""
    size = len(absmax) * BLOCK
    if place is None:
        place = torch.empty(size, dtype=dtype, device=codes.device)
    tile = size if codes.is_cuda else TILE
    scales = (absmax / 127 if bits == 8 else absmax).to(dtype)
    codes = codes.flatten()
    for start in range(0, size, tile):
        out = place[start : start + tile]
        if bits == 8:
            out.copy_(codes[start : start + tile])
        else:
            # One look-up gives two weights, moved as one number of their joint width.
            pairs = _pairs(dtype, codes.device)
            found = codes[start // 2 : (start + tile) // 2].int()
            torch.index_select(pairs, 0, found, out=out.view(pairs.dtype))
        out.view(-1, BLOCK).mul_(scales[start // BLOCK : (start + tile) // BLOCK, None])
    return place[: shape[0] * shape[1]].view(shape)


@cache
def _pairs(dtype: torch.dtype, device: torch.device) -> Tensor:
    """Both values of every possible byte (256,), side by side in one integer."""
    values = torch.tensor(NF4, device=device)
    pairs = torch.stack([values.repeat_interleave(16), values.repeat(16)], dim=1).to(dtype)
    return pairs.view(torch.int32 if dtype.itemsize == 2 else torch.int64).flatten()


_lent = threading.local()


def _borrow(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """`size` numbers of the thread's own memory, which the next call gives out again."""
    kept: dict[tuple[torch.dtype, torch.device], Tensor] = vars(_lent).setdefault("kept", {})
    found = kept.get((dtype, device))
    if found is None or len(found) < size:
        with torch.inference_mode(False):  # or it could not be written to outside of one again
            kept[dtype, device] = found = torch.empty(size, dtype=dtype, device=device)
    return found[:size]
