"""The same numbers with fewer kernels and fewer bytes kept: norms, MLPs and attention's inputs.

Written out operation by operation, a norm keeps its input in fp32 and an MLP keeps four tensors of
its inner size for the backward pass. Here a norm keeps its input as it came and one number a
token, an MLP the two factors of its product, and what is left out is worked out again: a handful
of element-wise kernels against products a hundred times dearer. Layers that read the same input
are asked together, so that their adapters cost one product instead of several.

Only modules whose code is, word for word, that of the Llama family are touched, so a family with
another norm is never given the wrong one.

Axes: T tokens, D hidden size, I inner size of the MLP, H heads, S head size.
"""

from __future__ import annotations

import inspect
import re
import sys
from functools import cache
from types import MethodType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaMLP,
    LlamaRMSNorm,
    apply_rotary_pos_emb,
    eager_attention_forward,
    rotate_half,
)

from timechat.model.adapt import together


def fuse(model: nn.Module) -> int:
    """Give `model`'s modules the forms below, where they fit; returns how many it were."""
    forms = ((LlamaRMSNorm, _norm), (LlamaMLP, _mlp), (LlamaAttention, _attention))
    count = 0
    for module in model.modules():
        for known, form in forms:
            if _is_same(module, known):
                module.forward = MethodType(form, module)
                count += 1
    return count


def _norm(self: Any, hidden_states: Tensor) -> Tensor:
    return cast(Tensor, _RmsNorm.apply(hidden_states, self.weight, self.variance_epsilon))


def _mlp(self: Any, x: Tensor) -> Tensor:
    gate, up = together((self.gate_proj, self.up_proj), x)
    # The activation may have been exchanged by a recipe since.
    if type(self.act_fn).__name__ not in ("SiLU", "SiLUActivation"):
        return self.down_proj(self.act_fn(gate) * up)
    return self.down_proj(_SwiGlu.apply(gate, up))


def _attention(
    self: Any,
    hidden_states: Tensor,
    position_embeddings: tuple[Tensor, Tensor],
    attention_mask: Tensor | None = None,
    cache: Cache | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """Llama's attention, its three products asked together and its turning by `_Turn`."""
    before = hidden_states.shape[:-1]
    products = together((self.q_proj, self.k_proj, self.v_proj), hidden_states)
    query, key, value = (x.view(*before, -1, self.head_dim).transpose(1, 2) for x in products)
    cos, sin = (x.unsqueeze(1) for x in position_embeddings)
    query, key = (cast(Tensor, _Turn.apply(x, cos, sin)) for x in (query, key))
    if cache is not None:
        key, value = cache.update(key, value, self.layer_idx, kwargs=options)
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(
        self.config._attn_implementation, eager_attention_forward
    )
    dropout = self.attention_dropout if self.training else 0.0
    out, seen = attend(
        self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling, **options
    )
    return self.o_proj(out.reshape(*before, -1)), seen


class _Turn(torch.autograd.Function):
    """Rotary positions (Su et al. 2021, arXiv:2104.09864) of x (N, H, T, S), by cos and sin
    (N, 1, T, S): with x = (u, v) in halves, (u, v) · cos + (−v, u) · sin.

    The sign is put into the sine, so that a turn is two products and one exchange of halves; the
    gradient is the same turn with the sine's halves exchanged.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        half = sin.shape[-1] // 2
        signed = torch.cat([-sin[..., :half], sin[..., half:]], -1)
        ctx.save_for_backward(cos, signed)
        return _turn(x, cos, signed)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        cos, signed = ctx.saved_tensors
        return _turn(grads[0], cos, _exchanged(signed)), None, None


def _turn(x: Tensor, cos: Tensor, signed: Tensor) -> Tensor:
    return (x * cos).add_(_exchanged(x).mul_(signed))


def _exchanged(x: Tensor) -> Tensor:
    """The two halves of the last axis in the other order."""
    half = x.shape[-1] // 2
    return torch.cat([x[..., half:], x[..., :half]], -1)


class _RmsNorm(torch.autograd.Function):
    """weight · round(x / rms(x)), rounded to x's format before the weight as Llama does."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = x.float()
        # Summed as Llama's own code does: another order rounds some answers otherwise.
        inverse = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x, weight, inverse)
        return weight * (wide * inverse).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight, inverse = ctx.saved_tensors
        (grad,) = grads
        wide = x.float()
        grad_weight = None
        if ctx.needs_input_grad[1]:
            normed = (wide * inverse).to(x.dtype)
            grad_weight = (grad * normed).flatten(0, -2).sum(0)
        slope = (grad * weight).float()
        # d/dx of x · i with i = (mean x² + eps)^-½:  i · g − x · i³ · mean(g x)
        along = torch.linalg.vecdot(slope, wide).unsqueeze(-1) * (inverse**3 / x.shape[-1])
        slope.mul_(inverse).addcmul_(wide, along, value=-1)
        return slope.to(x.dtype), grad_weight, None


class _SwiGlu(torch.autograd.Function):
    """silu(gate) · up, keeping nothing but the two."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        (grad,) = grads
        grad_up = F.silu(gate).mul_(grad)
        return torch.ops.aten.silu_backward(grad * up, gate), grad_up


def _turns_as_llama(kind: type[nn.Module]) -> bool:
    """Whether the rotary positions of `kind`'s family are written as Llama's."""
    own = sys.modules[kind.__module__]
    return all(
        _is_alike(getattr(own, known.__name__, None), known)
        for known in (apply_rotary_pos_emb, rotate_half)
    )


def _is_same(module: nn.Module, known: type[nn.Module]) -> bool:
    """Whether `module`'s forward is written as that of `known`."""
    kind = type(module)
    if "forward" in vars(module):
        return False
    if kind is known:
        return True
    if not kind.__name__.endswith(known.__name__.removeprefix("Llama")):
        return False
    if not _is_alike(kind.forward, known.forward):
        return False
    return known is not LlamaAttention or _turns_as_llama(kind)


def _is_alike(code: Any, known: Any) -> bool:
    """Whether two functions have the same words; not where there is no source to read."""
    return code is known or _words(code) == _words(known) != ""


@cache
def _words(code: Any) -> str:
    """A function's body without white space, so that annotations do not tell alike ones apart;
    empty where there is no source to read."""
    try:
        source = inspect.getsource(code)
    except (OSError, TypeError):
        return ""
    _, _, body = source.partition(":\n")
    return re.sub(r"\s+", "", body)
