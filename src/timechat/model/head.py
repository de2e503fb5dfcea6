"""The output head: hidden states at the places that matter, and their loss in summed nats.

Logits over a vocabulary are the largest tensor of a step, so they exist only where a target is,
only a chunk at a time, and never outlive the chunk: the gradient of the hidden states is worked
out in the forward pass and kept instead (the idea of "Cut your losses", arXiv:2411.09009, and of
Liger's fused linear cross-entropy).

Axes: n targets, D hidden size, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from timechat.errors import ModelError
from timechat.model.adapt import output_head
from timechat.model.layout import Layout
from timechat.model.paths import read

# Bytes of one chunk's logits in fp32. Small enough that the allocator hands the same pages out
# again: fresh pages cost a CPU more than the arithmetic on them (LAB.md).
CHUNK_BYTES = 2**24


def chunk_rows(vocabulary: int) -> int:
    """How many rows of logits are worked on at a time."""
    return max(16, CHUNK_BYTES // (4 * vocabulary))


@dataclass(frozen=True, slots=True)
class Head:
    """From hidden states to logits: cap · tanh(scale · (h Wᵀ + bias) / cap).

    `weight` (V, D), `bias` (V,) or None (Phi), `scale` (Cohere, Granite), `cap` (Gemma 2) or None.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    cap: float | None = None

    def logits(self, hidden: Tensor) -> Tensor:
        """(n, V) in fp32."""
        logits = F.linear(hidden, self.weight, self.bias).float()
        if self.scale != 1.0:
            logits.mul_(self.scale)
        if self.cap is not None:
            logits.div_(self.cap).tanh_().mul_(self.cap)
        return logits

    def slope(self, grad: Tensor, logits: Tensor) -> Tensor:
        """The gradient of h Wᵀ + bias out of that of the logits; changes `grad`."""
        if self.cap is not None:
            grad.mul_(1 - (logits / self.cap).square_())
        if self.scale != 1.0:
            grad.mul_(self.scale)
        return grad


def hidden_states(model: PreTrainedModel, ids: Tensor, layout: Layout, where: Tensor) -> Tensor:
    """Final hidden states (n, D) at the flat places `where` of packed `ids` (1, T)."""
    return read(model, ids, layout).index_select(0, where.to(model.device))


def head_of(model: PreTrainedModel) -> Head:
    """The model's head. Raises ModelError when it is none of the forms that are known."""
    head = output_head(model)
    if not isinstance(head, nn.Linear):
        raise ModelError(f"{type(model).__name__} has no linear output head")
    config = model.config.get_text_config()
    scale = float(getattr(config, "logit_scale", None) or 1.0)
    # Granite divides by what it calls scaling.
    scale /= float(getattr(config, "logits_scaling", None) or 1.0)
    cap = cast(float | None, getattr(config, "final_logit_softcapping", None))
    return Head(head.weight, cast(Tensor | None, head.bias), scale, cap)


def nats(
    hidden: Tensor, head: Head, targets: Tensor, weights: Tensor, right: Tensor | None = None
) -> Tensor:
    """Σ wᵢ · −log p(targetᵢ), a scalar in fp32; its gradient reaches `hidden`, and the head's
    weight and bias where they learn. How many targets were the likeliest token is added to
    `right`, a scalar, on the way.

    Raises ModelError for a target outside the vocabulary.
    """
    size = len(head.weight)
    if len(targets) and not 0 <= int(targets.min()) <= int(targets.max()) < size:
        worst = int(targets.max()) if int(targets.min()) >= 0 else int(targets.min())
        raise ModelError(
            f"a row's token {worst} is outside the model's vocabulary of {size}: the tokenizer is "
            "another model's"
        )
    return cast(
        Tensor,
        _HeadLoss.apply(hidden, head.weight, head.bias, head, targets, None, None, weights, right),
    )


def divergence(
    hidden: Tensor, head: Head, teacher: Tensor, weights: Tensor, teacher_head: Head | None = None
) -> Tensor:
    """Σ wᵢ · KL(teacherᵢ ‖ studentᵢ) in nats; `teacher` (n, D) are the base's hidden states.

    `teacher_head` is the base's head where `head` itself learns.
    """
    other = teacher_head or head
    return cast(
        Tensor,
        _HeadLoss.apply(hidden, head.weight, head.bias, head, None, teacher, other, weights, None),
    )


def log_probs(hidden: Tensor, head: Head, targets: Tensor) -> tuple[Tensor, Tensor]:
    """(log p(targetᵢ), whether the target is the likeliest token), both (n,), without gradient."""
    values: list[Tensor] = []
    hits: list[Tensor] = []
    with torch.no_grad():
        rows = chunk_rows(len(head.weight))
        for start in range(0, len(targets), rows):
            part = slice(start, start + rows)
            logits = head.logits(hidden[part])
            chosen = logits.gather(1, targets[part, None])[:, 0]
            values.append(chosen - logits.logsumexp(-1))
            hits.append(chosen >= logits.amax(-1))
    return torch.cat(values), torch.cat(hits)


def _log_sum(top: Tensor, probabilities: Tensor) -> Tensor:
    """log Σ exp(logits) (n,) out of the largest logits and all probabilities: the largest of these
    never underflows."""
    return top - probabilities.amax(-1).log()


class _HeadLoss(torch.autograd.Function):
    """Cross-entropy to token ids, or divergence to a teacher's distribution, chunk by chunk."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        head: Head,
        targets: Tensor | None,
        teacher: Tensor | None,
        teacher_head: Head | None,
        weights: Tensor,
        right: Tensor | None,
    ) -> Tensor:
        total = hidden.new_zeros((), dtype=torch.float32)
        grad = torch.empty_like(hidden)
        learns = ctx.needs_input_grad[1]
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if learns else None
        grad_bias = torch.zeros_like(bias) if bias is not None and ctx.needs_input_grad[2] else None
        rows = chunk_rows(len(weight))
        for start in range(0, len(hidden), rows):
            part = slice(start, start + rows)
            scale = weights[part]
            logits = head.logits(hidden[part])
            slope = logits.softmax(-1)
            top = logits.amax(-1)
            log_z = _log_sum(top, slope)
            if targets is not None:
                chosen = targets[part, None]
                wanted = logits.gather(1, chosen)[:, 0]
                total += ((log_z - wanted) * scale).sum()
                if right is not None:
                    right += (wanted >= top).sum()
                slope.scatter_add_(1, chosen, -torch.ones_like(scale)[:, None])
            else:
                assert teacher is not None
                assert teacher_head is not None
                wanted = teacher_head.logits(teacher[part])
                q = wanted.softmax(-1)
                # KL = Σ q · (wanted − logits) − log Z(wanted) + log Z(logits)
                gap = log_z - _log_sum(wanted.amax(-1), q)
                gap += torch.linalg.vecdot(q, wanted.sub_(logits))
                total += (gap * scale).sum()
                slope.sub_(q)
            slope = head.slope(slope, logits).to(hidden.dtype)
            # The weight of a row scales D numbers here, and would scale V above.
            grad[part] = (slope @ weight) * scale[:, None]
            if grad_weight is not None:
                grad_weight += (slope * scale[:, None].to(slope.dtype)).T @ hidden[part]
            if grad_bias is not None:
                grad_bias += scale.to(slope.dtype) @ slope
        ctx.save_for_backward(grad, grad_weight, grad_bias)
        ctx.dtype = weight.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        found = [None if g is None else g * grads[0].to(g.dtype) for g in ctx.saved_tensors]
        grad, weight, bias = found
        if weight is not None:
            weight = weight.to(ctx.dtype)
        return grad, weight, bias, None, None, None, None, None, None
