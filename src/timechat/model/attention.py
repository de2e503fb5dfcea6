"""Attention over packed rows: many conversations in one flat sequence, none seeing another.

A `Layout` says how T flat tokens are cut into segments. Everything that works token by token
(projections, norms, MLP) runs on the flat sequence, with no padding at all; only inside attention
are segments of similar length laid side by side. Segments may share a prefix, which is then
computed once and attended to by all of them: exact, since a prefix never looks ahead.

Axes: T flat tokens, N segments, L longest segment of a group, P prefix, H heads, D head size.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface, PreTrainedModel

from timechat.errors import ModelError

PACKED = "timechat_packed"
# A group of segments is padded to its longest; past this share of padding a new group is opened.
MAX_PADDING = 0.25
# On a CPU, segments up to this many tokens take the textbook path.
SHORT = 512


@dataclass(frozen=True, slots=True)
class Group:
    """Segments of similar length. `index` (N*L,) reads flat tokens into rows, `inverse` (n,) reads
    the rows' real tokens back, `where` (n,) holds those tokens' flat places. `prefix` is the number
    of shared tokens that its segments see, `mask` (1, 1, L, P+L) what each of their tokens sees."""

    prefix: int
    num_segments: int
    length: int
    index: Tensor
    inverse: Tensor
    where: Tensor
    mask: Tensor | None


@dataclass(frozen=True, slots=True)
class Layout:
    """The cut of a flat sequence: an optional shared prefix first, then the segments."""

    prefix: int
    groups: tuple[Group, ...]
    order: Tensor
    positions: Tensor


def plan_layout(lengths: Sequence[int], prefix: int = 0, num_alone: int = 0) -> Layout:
    """The layout of a flat sequence of `prefix` tokens followed by segments of `lengths`.

    The last `num_alone` segments do not see the prefix and begin at position 0.
    """
    starts = [prefix]
    for length in lengths:
        starts.append(starts[-1] + length)
    num_sharing = len(lengths) - num_alone
    kinds = ((range(num_sharing), prefix), (range(num_sharing, len(lengths)), 0))
    if not prefix:
        kinds = ((range(len(lengths)), 0),)
    groups = tuple(
        _group([(starts[i], lengths[i]) for i in members], seen)
        for segments, seen in kinds
        for members in _similar(sorted(segments, key=lambda i: lengths[i]), lengths)
    )
    place = torch.empty(starts[-1], dtype=torch.long)
    where = torch.cat([torch.arange(prefix), *(group.where for group in groups)])
    place[where] = torch.arange(len(where))
    positions = [torch.arange(prefix)]
    for i, length in enumerate(lengths):
        first = prefix if i < num_sharing else 0
        positions.append(torch.arange(first, first + length))
    return Layout(prefix, groups, place, torch.cat(positions))


def _similar(ranked: list[int], lengths: Sequence[int]) -> Iterator[list[int]]:
    """Runs of the ranked segments whose padding stays below MAX_PADDING."""
    members: list[int] = []
    total = 0
    for i in ranked:
        padded = lengths[i] * (len(members) + 1)
        if len(members) > 3 and padded - total - lengths[i] > MAX_PADDING * padded:
            yield members
            members, total = [], 0
        members.append(i)
        total += lengths[i]
    if members:
        yield members


def _group(spans: list[tuple[int, int]], prefix: int) -> Group:
    longest = max(length for _, length in spans)
    index = torch.zeros(len(spans), longest, dtype=torch.long)
    inverse: list[Tensor] = []
    where: list[Tensor] = []
    for row, (start, length) in enumerate(spans):
        # Padding repeats the segment's own first token: its output is never read.
        index[row] = start
        index[row, :length] = torch.arange(start, start + length)
        inverse.append(torch.arange(row * longest, row * longest + length))
        where.append(torch.arange(start, start + length))
    mask = None
    if prefix:
        own = torch.ones(longest, longest, dtype=torch.bool).tril()
        mask = torch.cat([torch.ones(longest, prefix, dtype=torch.bool), own], dim=1)[None, None]
    return Group(
        prefix, len(spans), longest, index.flatten(), torch.cat(inverse), torch.cat(where), mask
    )


class _Gather(torch.autograd.Function):
    """x[index], where every real token is read once and padding's gradient is zero by causality.

    The gradient is then a gather too, instead of the scatter-add that autograd would choose.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group, ctx.num_tokens = group, x.shape[0]
        return x.index_select(0, group.index)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        group: Group = ctx.group
        out = grads[0].new_zeros(ctx.num_tokens, *grads[0].shape[1:])
        out.index_copy_(0, group.where, grads[0].index_select(0, group.inverse))
        return out, None


def _packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """The function transformers calls: query (1, H, T, D) to output (1, T, H, D)."""
    layout = _current[-1]
    _reached[-1] = True
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    outputs: list[Tensor] = []
    prefix_k = prefix_v = None
    if layout.prefix:
        prefix_k, prefix_v = k[: layout.prefix], v[: layout.prefix]
        rows = [x[: layout.prefix].unsqueeze(0) for x in (q, k, v)]
        outputs.append(_attend(rows[0], rows[1], rows[2], None, scaling, dropout)[0])
    for group in layout.groups:
        shape = (group.num_segments, group.length)
        rows = [_gather(x, group).unflatten(0, shape) for x in (q, k, v)]
        if group.prefix and prefix_k is not None and prefix_v is not None:
            for i, shared in ((1, prefix_k), (2, prefix_v)):
                rows[i] = torch.cat([shared.expand(shape[0], *shared.shape), rows[i]], dim=1)
        out = _attend(rows[0], rows[1], rows[2], group.mask, scaling, dropout)
        outputs.append(out.flatten(0, 1).index_select(0, group.inverse))
    flat = torch.cat(outputs) if len(outputs) > 1 else outputs[0]
    return flat.index_select(0, layout.order).unsqueeze(0), None


def _gather(x: Tensor, group: Group) -> Tensor:
    return _Gather.apply(x, group)  # type: ignore[no-any-return]


def _attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None, dropout: float
) -> Tensor:
    """(N, L, H, D) in and out; fewer key heads than query heads are shared in order."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    if not q.is_cuda and q.shape[2] <= SHORT and dropout == 0:
        return _attend_short(q, k, v, mask, scale).transpose(1, 2)
    out = F.scaled_dot_product_attention(
        q, k, v, mask, dropout, is_causal=mask is None, scale=scale, enable_gqa=True
    )
    return out.transpose(1, 2)


def _attend_short(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None
) -> Tensor:
    """The textbook form, (N, H, L, D) in and out, with the query heads of a key head side by side.

    PyTorch's fused kernel for the CPU is slow on short segments, above all backwards (bench/).
    """
    num, heads, length, size = q.shape
    shared, keys = k.shape[1], k.shape[2]
    batch = num * shared
    scaled = q * (size**-0.5 if scale is None else scale)
    scores = torch.bmm(
        scaled.reshape(batch, -1, size), k.reshape(batch, keys, size).transpose(1, 2)
    ).view(batch, heads // shared, length, keys)
    if mask is None:
        mask = torch.ones(length, keys, dtype=torch.bool, device=q.device).tril()
    hidden = torch.zeros(length, keys, dtype=q.dtype, device=q.device)
    hidden.masked_fill_(~mask.view(length, keys), float("-inf"))
    weights = (scores + hidden).softmax(-1)
    out = torch.bmm(weights.view(batch, -1, keys), v.reshape(batch, keys, size))
    return out.view(num, heads, length, size)


AttentionInterface.register(PACKED, _packed_attention)
_current: list[Layout] = []
_reached: list[bool] = []


@contextmanager
def packed(model: PreTrainedModel, layout: Layout) -> Generator[None]:
    """Run `model` on flat sequences cut by `layout`; its own attention is put back after.

    Raises ModelError when the model did not ask this attention: its rows would have been mixed.
    """
    before = str(getattr(model.config, "_attn_implementation", "sdpa"))
    try:
        model.set_attn_implementation(PACKED)
    except ValueError as error:
        raise ModelError(f"{type(model).__name__} cannot attend to packed rows: {error}") from None
    _current.append(layout)
    _reached.append(False)
    try:
        yield
        if not _reached[-1]:
            raise ModelError(
                f"{type(model).__name__} attends in a way of its own, so packed rows would see "
                "each other: this family is not supported"
            )
    finally:
        _current.pop()
        _reached.pop()
        model.set_attn_implementation(before)
