"""The loop: `for record in fit(...)`. One step a turn; it touches no files and prints nothing.

Saving, logging, validating, stopping and showing are its consumers' business, done between two
steps. Which parameters learn was decided by `model.adapt` before the loop began.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from timechat.data.pack import Batch
from timechat.errors import TrainingError
from timechat.model.adapt import disabled
from timechat.model.head import divergence, head_weight, hidden_states, nats
from timechat.records import StepRecord


@dataclass(frozen=True, slots=True)
class Settings:
    """What the loop needs of the plan."""

    num_steps: int
    learning_rate: float
    warmup_steps: int
    weight_decay: float
    clip: float
    replay_weight: float


@dataclass(frozen=True, slots=True)
class Step:
    """The rows of one optimizer step: micro-batches to learn from, and one to stay true on."""

    batches: tuple[Batch, ...]
    replay: Batch | None = None


class Trainer:
    """The state that a step changes: parameters, optimizer, the number of steps done."""

    def __init__(self, model: PreTrainedModel, settings: Settings) -> None:
        self.model = model
        self.settings = settings
        self.step = 0
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=settings.learning_rate,
            betas=(0.9, 0.999),
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self._weight = head_weight(model)
        self._teachers: dict[tuple[str, ...], Tensor] = {}

    def advance(self, step: Step) -> StepRecord:
        """One optimizer step. Raises TrainingError, leaving the weights, on a non-finite loss."""
        started = time.perf_counter()
        rate = learning_rate(self.step, self.settings)
        targets = sum(batch.num_target_tokens for batch in step.batches)
        loss = self.backward(step.batches)
        replay_loss = self._hold(step.replay) if step.replay is not None else None
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, self.settings.clip))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self.optimizer.zero_grad(set_to_none=True)
            rows = [row for batch in step.batches for row in batch.row_ids]
            raise TrainingError(
                f"step {self.step + 1}: loss {loss}, gradient norm {norm}; rows {rows[:8]}. "
                "Lower train.learning_rate."
            )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        used = (*step.batches, step.replay) if step.replay is not None else step.batches
        return StepRecord(
            step=self.step,
            loss=loss,
            grad_norm=norm,
            learning_rate=rate,
            tokens=sum(batch.num_tokens for batch in used),
            target_tokens=targets,
            elapsed_s=time.perf_counter() - started,
            replay_loss=replay_loss,
        )

    def backward(self, batches: tuple[Batch, ...]) -> float:
        """Accumulate the gradient of the batches' mean nats per target token; returns the mean.

        Nats are summed over the targets of all batches, so how rows are cut changes nothing.
        """
        targets = sum(batch.num_target_tokens for batch in batches)
        total = 0.0
        for batch in batches:
            part = self._nats(batch) / targets
            part.backward()
            total += float(part.detach())
        return total

    def _nats(self, batch: Batch) -> Tensor:
        hidden = hidden_states(self.model, batch.ids, batch.layout, batch.target_index)
        device = hidden.device
        return nats(hidden, self._weight, batch.targets.to(device), batch.weights.to(device))

    def _hold(self, batch: Batch) -> float:
        """Pull the model towards its base on rows that are none of the task's."""
        hidden = hidden_states(self.model, batch.ids, batch.layout, batch.target_index)
        weights = batch.weights.to(hidden.device)
        loss = divergence(hidden, self._weight, self._teacher(batch), weights) / weights.sum()
        (loss * self.settings.replay_weight).backward()
        return float(loss.detach())

    def _teacher(self, batch: Batch) -> Tensor:
        """The base's hidden states for a replay batch, computed once and kept (n, D)."""
        key = batch.row_ids
        if key not in self._teachers:
            with torch.no_grad(), disabled(self.model):
                self._teachers[key] = hidden_states(
                    self.model, batch.ids, batch.layout, batch.target_index
                )
        return self._teachers[key]


def fit(
    trainer: Trainer,
    steps: Sequence[Callable[[], Step]],
) -> Iterator[StepRecord]:
    """Yield a record after each step that is still to do. `steps` builds each step's rows."""
    trainer.model.train()
    while trainer.step < len(steps):
        yield trainer.advance(steps[trainer.step]())


def learning_rate(step: int, settings: Settings) -> float:
    """Linear warm-up, then a cosine to zero (Loshchilov and Hutter 2016, arXiv:1608.03983)."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    done = (step - settings.warmup_steps) / max(1, settings.num_steps - settings.warmup_steps)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
