"""Attention over packed rows: many conversations in one flat sequence, none seeing another.

Everything that works token by token (projections, norms, MLP) runs on the flat sequence, with no
padding at all; only inside attention are segments of similar length laid side by side, as the
`layout` says. Which families can be read like this is decided in `paths`.

Axes: T flat tokens, N segments, L longest segment of a group, P prefix, H heads, D head size.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import causal_mask_function

from timechat.errors import ModelError
from timechat.model.layout import Group, Layout, Places, find_places

PACKED = "timechat_packed"
# On a CPU, segments up to this many tokens take the textbook path.
SHORT = 512
# Tensors that families hand to attention besides queries, keys and values, and that are either
# dealt with here or only meant for other kernels.
_UNDERSTOOD = ("s_aux", "position_ids", "cache_position")

# May the query at place q of a row see the key at place k? (batch, head, q, k) to bool.
Rule = Callable[[Any, Any, Any, Any], Any]


class _Spread(torch.autograd.Function):
    """Flat tokens (T, ...) to rows side by side (M, ...).

    Every real token is read once, and padding's gradient is zero by causality, so the gradient is a
    gather too, instead of the scatter-add that autograd would choose.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, places: Places) -> Tensor:
        ctx.places = places
        return x.index_select(0, places.spread)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0].index_select(0, ctx.places.home), None


class _Collect(torch.autograd.Function):
    """Rows side by side (M, ...) to flat tokens (T, ...); the gradient is a gather as well."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, places: Places) -> Tensor:
        ctx.places = places
        return x.index_select(0, places.home)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        places: Places = ctx.places
        out = grads[0].index_select(0, places.spread)
        return out.index_fill_(0, places.padding, 0), None


def _packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[Tensor, None]:
    """The function transformers calls: query (1, H, T, D) to output (1, T, H, D)."""
    run = _current[-1]
    run.reached = True
    _refuse_unknown(module, options)
    layout, rule = run.layout, run.rule(attention_mask)
    sinks = cast(Tensor | None, options.get("s_aux"))
    form = _Form(scaling, dropout, cast(float | None, options.get("softcap")), sinks)
    places = run.places(query.device)
    # The prefix and each group's rows, of queries, keys and values.
    parts = [_spread(x[0].transpose(0, 1), places) for x in (query, key, value)]
    opening = [part[0].unsqueeze(0) for part in parts]
    outputs: list[Tensor] = []
    if layout.prefix:
        mask = run.mask(rule, 0, layout.prefix, query)
        outputs.append(_attend(opening[0], opening[1], opening[2], mask, form)[0])
    for i, group in enumerate(layout.groups, start=1):
        shape = (group.num_segments, group.length)
        q, k, v = (part[i].unflatten(0, shape) for part in parts)
        if group.prefix:
            shared = [x.expand(shape[0], *x.shape[1:]) for x in opening[1:]]
            k, v = torch.cat([shared[0], k], dim=1), torch.cat([shared[1], v], dim=1)
        mask = run.mask_of(rule, group, query)
        outputs.append(_attend(q, k, v, mask, form).flatten(0, 1))
    rows = torch.cat(outputs) if len(outputs) > 1 else outputs[0]
    return cast(Tensor, _Collect.apply(rows, places)).unsqueeze(0), None


def _refuse_unknown(module: torch.nn.Module, options: dict[str, Any]) -> None:
    """Raise ModelError where a family asks for more than this attention does."""
    strange = [n for n, v in options.items() if isinstance(v, Tensor) and n not in _UNDERSTOOD]
    if options.get("is_causal") is False or not getattr(module, "is_causal", True):
        strange.append("is_causal=False")
    if strange:
        raise ModelError(f"{type(module).__name__} asks attention for {', '.join(strange)}")


def _spread(x: Tensor, places: Places) -> tuple[Tensor, ...]:
    return cast(Tensor, _Spread.apply(x, places)).split(places.sizes)


@dataclass(frozen=True, slots=True)
class _Form:
    """How a family forms its scores: scale (None: 1/√D), dropout, a cap that tanh bends them to
    (Gemma 2), and a logit for each head that takes part in the softmax alone (GPT-OSS)."""

    scale: float | None
    dropout: float
    softcap: float | None
    sinks: Tensor | None


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, form: _Form) -> Tensor:
    """(N, L, H, D) in and out; fewer key heads than query heads are shared in order.

    `mask` (L, K) or (N, 1, L, K) is added to the scores; None is plain causal.
    """
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    special = form.softcap is not None or form.sinks is not None
    if special or (not q.is_cuda and q.shape[2] <= SHORT and form.dropout == 0):
        return _attend_short(q, k, v, mask, form).transpose(1, 2)
    out = F.scaled_dot_product_attention(
        q, k, v, mask, form.dropout, is_causal=mask is None, scale=form.scale, enable_gqa=True
    )
    return out.transpose(1, 2)


def _attend_short(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, form: _Form) -> Tensor:
    """The textbook form, (N, H, L, D) in and out, with the query heads of a key head side by side.

    PyTorch's fused kernel for the CPU is slow on short segments, above all backwards (bench/).
    """
    num, heads, length, size = q.shape
    shared, keys = k.shape[1], k.shape[2]
    batch = num * shared
    scaled = q * (size**-0.5 if form.scale is None else form.scale)
    scores = torch.bmm(
        scaled.reshape(batch, -1, size), k.reshape(batch, keys, size).transpose(1, 2)
    ).view(num, heads, length, keys)
    if form.softcap is not None:
        scores = torch.tanh(scores / form.softcap) * form.softcap
    if mask is None:
        mask = _additive(causal_mask_function, 0, length, q)
    scores = scores + mask
    if form.sinks is None:
        weights = scores.softmax(-1)
    else:
        sinks = form.sinks.to(scores.dtype).view(1, -1, 1, 1).expand(num, -1, length, 1)
        weights = torch.cat([scores, sinks], dim=-1).softmax(-1)[..., :-1]
    if form.dropout:
        weights = F.dropout(weights, form.dropout)
    out = torch.bmm(weights.reshape(batch, -1, keys), v.reshape(batch, keys, v.shape[-1]))
    return out.view(num, heads, length, v.shape[-1])


def _additive(rule: Rule, prefix: int, length: int, like: Tensor) -> Tensor:
    """(L, P+L): 0 where `rule` lets a segment's token see, else -inf; its tokens stand after P."""
    places = torch.arange(prefix + length, device=like.device)
    zero = places.new_zeros(())
    seen = rule(zero, zero, places[prefix:, None], places[None, :])
    hidden = torch.zeros(length, prefix + length, dtype=like.dtype, device=like.device)
    return hidden.masked_fill_(~seen, float("-inf"))


def _forked(rule: Rule, prefix: int, branches: Tensor, places: Tensor, like: Tensor) -> Tensor:
    """(N, 1, L, P+L): as `_additive`, where a token sees what stands before its fork, and its own
    branch. Padding sees what stands before the fork and is seen by no one."""
    branches, places = branches.to(like.device), places.to(like.device)
    opening = torch.arange(prefix, device=like.device).expand(len(places), -1)
    keys = torch.cat([opening, places], dim=1)[:, None, :]
    owners = torch.cat([torch.zeros_like(opening), branches], dim=1)[:, None, :]
    zero = places.new_zeros(())
    seen = rule(zero, zero, places[:, :, None], keys)
    seen = seen & ((owners == 0) | (owners == branches[:, :, None]))
    hidden = torch.zeros(seen.shape, dtype=like.dtype, device=like.device)
    return hidden.masked_fill_(~seen, float("-inf"))[:, None]


class _Run:
    """One pass over packed rows: its layout, the rules its layers see by, and their masks."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.reached = False
        self._places: Places | None = None
        self._rules: list[Rule] = []
        self._masks: dict[tuple[int, int, int, torch.dtype], Tensor] = {}
        self._forked: dict[tuple[int, int, torch.dtype], Tensor] = {}

    def places(self, device: torch.device) -> Places:
        """Where the flat tokens lie side by side: the same in every layer."""
        if self._places is None or self._places.home.device != device:
            self._places = find_places(self.layout, device)
        return self._places

    def number(self, rule: Rule) -> int:
        self._rules.append(rule)
        return len(self._rules) - 1

    def rule(self, mask: Tensor | None) -> int:
        """Which rule a layer was handed: see `_packed_mask`; -1 is plain causal."""
        return -1 if mask is None else int(mask.flatten()[0])

    def mask_of(self, number: int, group: Group, like: Tensor) -> Tensor | None:
        """The additive mask of a group's segments, kept like `mask`."""
        if group.branches is None or group.places is None:
            return self.mask(number, group.prefix, group.length, like)
        key = (number, id(group), like.dtype)
        if key not in self._forked:
            rule = causal_mask_function if number == -1 else self._rules[number]
            self._forked[key] = _forked(rule, group.prefix, group.branches, group.places, like)
        return self._forked[key]

    def mask(self, number: int, prefix: int, length: int, like: Tensor) -> Tensor | None:
        """The additive mask of segments of `length` behind `prefix`; None where SDPA's own will do.

        Kept, since every layer asks for the same few.
        """
        if number == -1 and prefix == 0 and (like.is_cuda or length > SHORT):
            return None
        key = (number, prefix, length, like.dtype)
        if key not in self._masks:
            rule = causal_mask_function if number == -1 else self._rules[number]
            self._masks[key] = _additive(rule, prefix, length, like)
        return self._masks[key]


def _packed_mask(*, mask_function: Rule, **_: Any) -> Tensor | None:
    """What transformers calls for a layer kind's mask: None for plain causal, else a rule's number.

    Sliding windows, chunks and whatever else a family has are rules on places in a row, so they
    are asked at each row's own places later, never at the flat ones.
    """
    if mask_function is causal_mask_function:
        return None
    return torch.full((1, 1, 1, 1), _current[-1].number(mask_function))


AttentionInterface.register(PACKED, _packed_attention)
AttentionMaskInterface.register(PACKED, _packed_mask)
_current: list[_Run] = []


@contextmanager
def packed(model: PreTrainedModel, layout: Layout) -> Generator[None]:
    """Run `model` on flat sequences cut by `layout`; its own attention is put back after.

    The caller passes an `attention_mask` of ones: without one, transformers would read segments
    out of the positions and mix them into its rule. Raises ModelError when the model did not ask
    this attention: its rows would have been mixed.
    """
    run = _Run(layout)
    with again(model, run):
        yield
        if not run.reached:
            raise ModelError(
                f"{type(model).__name__} attends in a way of its own, so packed rows would see "
                "each other"
            )


def current_run() -> _Run | None:
    """The packed reading that is under way."""
    return _current[-1] if _current else None


@contextmanager
def again(model: PreTrainedModel, run: _Run) -> Generator[None]:
    """Go on with a packed reading: its layout, and the masks that were numbered in it."""
    before = str(getattr(model.config, "_attn_implementation", "sdpa"))
    try:
        model.set_attn_implementation(PACKED)
    except ValueError as error:
        raise ModelError(f"{type(model).__name__} cannot attend to packed rows: {error}") from None
    _current.append(run)
    try:
        yield
    finally:
        _current.pop()
        model.set_attn_implementation(before)
