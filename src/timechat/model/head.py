"""The output head: hidden states at the places that matter, and their loss in summed nats.

Logits over a vocabulary are the largest tensor of a step, so they exist only where a target is,
only a chunk at a time, and never outlive the chunk: the gradient of the hidden states is worked
out in the forward pass and kept instead (the idea of "Cut your losses", arXiv:2411.09009, and of
Liger's fused linear cross-entropy).

Axes: n targets, D hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from timechat.errors import ModelError
from timechat.model.adapt import output_head
from timechat.model.attention import Layout, packed

# Bytes of one chunk's logits in fp32. Small enough that the allocator hands the same pages out
# again: fresh pages cost a CPU more than the arithmetic on them (LAB.md).
CHUNK_BYTES = 2**24


def chunk_rows(vocabulary: int) -> int:
    """How many rows of logits are worked on at a time."""
    return max(16, CHUNK_BYTES // (4 * vocabulary))


def hidden_states(model: PreTrainedModel, ids: Tensor, layout: Layout, where: Tensor) -> Tensor:
    """Final hidden states (n, D) at the flat places `where` of packed `ids` (1, T)."""
    device = model.device
    trunk = cast(nn.Module, getattr(model, model.base_model_prefix))
    with packed(model, layout):
        out = trunk(
            input_ids=ids.to(device),
            position_ids=layout.positions.unsqueeze(0).to(device),
            use_cache=False,
        )
    return out.last_hidden_state[0].index_select(0, where.to(device))


def head_weight(model: PreTrainedModel) -> Tensor:
    """The head's weight (V, D). Raises ModelError when logits are more than hidden @ weightᵀ."""
    head = output_head(model)
    if not isinstance(head, nn.Linear) or cast(Tensor | None, head.bias) is not None:
        raise ModelError(f"{type(model).__name__} has no plain linear head without bias")
    for name in ("final_logit_softcapping", "logit_scale", "logits_scaling"):
        if getattr(model.config, name, None) not in (None, 1, 1.0):
            raise ModelError(f"{type(model).__name__} changes its logits ({name}): not supported")
    return head.weight


def nats(hidden: Tensor, weight: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Σ wᵢ · −log p(targetᵢ), a scalar in fp32; its gradient reaches `hidden` only."""
    return cast(Tensor, _HeadLoss.apply(hidden, weight, targets, None, weights))


def divergence(hidden: Tensor, weight: Tensor, teacher: Tensor, weights: Tensor) -> Tensor:
    """Σ wᵢ · KL(teacherᵢ ‖ studentᵢ) in nats; `teacher` (n, D) are the base's hidden states."""
    return cast(Tensor, _HeadLoss.apply(hidden, weight, None, teacher, weights))


def log_probs(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """(log p(targetᵢ), whether the target is the likeliest token), both (n,), without gradient."""
    values: list[Tensor] = []
    hits: list[Tensor] = []
    with torch.no_grad():
        rows = chunk_rows(len(weight))
        for start in range(0, len(targets), rows):
            part = slice(start, start + rows)
            logits = F.linear(hidden[part], weight).float()
            chosen = logits.gather(1, targets[part, None])[:, 0]
            values.append(chosen - logits.logsumexp(-1))
            hits.append(chosen >= logits.amax(-1))
    return torch.cat(values), torch.cat(hits)


def _log_sum(logits: Tensor, probabilities: Tensor) -> Tensor:
    """log Σ exp(logits) (n,) out of their softmax: the largest probability never underflows."""
    return logits.amax(-1) - probabilities.amax(-1).log()


class _HeadLoss(torch.autograd.Function):
    """Cross-entropy to token ids, or divergence to a teacher's distribution, chunk by chunk."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor | None,
        teacher: Tensor | None,
        weights: Tensor,
    ) -> Tensor:
        total = hidden.new_zeros((), dtype=torch.float32)
        grad = torch.empty_like(hidden)
        rows = chunk_rows(len(weight))
        for start in range(0, len(hidden), rows):
            part = slice(start, start + rows)
            scale = weights[part]
            logits = F.linear(hidden[part], weight).float()
            slope = logits.softmax(-1)
            log_z = _log_sum(logits, slope)
            if targets is not None:
                chosen = targets[part, None]
                total += ((log_z - logits.gather(1, chosen)[:, 0]) * scale).sum()
                slope.scatter_add_(1, chosen, -torch.ones_like(scale)[:, None])
            else:
                assert teacher is not None
                wanted = F.linear(teacher[part], weight).float()
                q = wanted.softmax(-1)
                # KL = Σ q · (wanted − logits) − log Z(wanted) + log Z(logits)
                gap = log_z - _log_sum(wanted, q)
                gap += torch.linalg.vecdot(q, wanted.sub_(logits))
                total += (gap * scale).sum()
                slope.sub_(q)
            # The weight of a row scales D numbers here, and would scale V above.
            grad[part] = (slope.to(hidden.dtype) @ weight) * scale[:, None]
        ctx.save_for_backward(grad)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        (grad,) = ctx.saved_tensors
        return grad * grads[0].to(grad.dtype), None, None, None, None
