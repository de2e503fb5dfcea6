"""One optimizer step after another on a model: its state, its gradient, its averaged weights.

Which parameters learn was decided by `model.method` before; when to step, validate and save is for
the loop and its consumers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from timechat.data.pack import Batch, Example, pack
from timechat.errors import TrainingError
from timechat.model.head import Head, divergence, head_of, hidden_states, nats
from timechat.model.method import Change
from timechat.model.ranks import is_sharded, local, rows_here
from timechat.model.weights import fp32_master
from timechat.records import StepRecord
from timechat.training.schedule import Settings, learning_rate
from timechat.training.trunk import Trunk


@dataclass(slots=True)
class Begun:
    """A step under way: its micro-batches done, and what they have added up to so far.

    Their gradient is in the parameters' `grad`.
    """

    batches: int = 0
    loss: float = 0.0
    held: float = 0.0
    right: float = 0.0


class StepInterruptedError(TrainingError):
    """Asked to stop between two micro-batches of a step; what is done is in `Trainer.begun`."""


class NotFiniteError(TrainingError):
    """A step whose loss or gradient is not a finite number; the weights are as before it."""

    def __init__(self, step: int, loss: float, norm: float, rows: list[str]) -> None:
        super().__init__(
            f"step {step}: loss {loss}, gradient norm {norm}; rows {rows[:8]}. "
            "Lower train.learning_rate."
        )
        self.loss, self.norm, self.rows = loss, norm, rows


class Trainer:
    """The state that a step changes: parameters, their average, optimizer, number of steps done.

    The parameters that learn are fp32: the model's own, or masters of them, of which the model
    holds a rounded copy. What is validated, saved and served is their exponential average (Polyak
    and Juditsky 1992), which `averaged` puts into the model for a while and `settle` for good.
    """

    def __init__(
        self, model: PreTrainedModel, settings: Settings, change: Change | None = None
    ) -> None:
        self.model = model
        self.settings = settings
        self.change = change or Change(model)
        self.ranks = self.change.ranks
        self.step = 0
        self.begun = Begun()
        # What a roll-back leaves of the learning rate.
        self.rate_scale = 1.0
        self._held = [p for p in model.parameters() if p.requires_grad]
        # Of a sharded weight, this rank's rows.
        self.parameters = [fp32_master(p) for p in self._held]
        self.rows = [rows_here(p) for p in self._held]
        self.optimizer = torch.optim.AdamW(
            _groups(self.parameters, settings.weight_decay),
            lr=settings.learning_rate,
            betas=(0.9, 0.999),
            fused=True,
        )
        self.average = self.parameters
        if settings.average_steps > 1:
            self.average = [p.detach().clone() for p in self.parameters]
        self._head = head_of(model)
        # What the frozen layers put out, where the plan keeps it.
        self.trunk: Trunk | None = None
        self._teachers: dict[tuple[Example, ...], Tensor] = {}

    def advance(
        self, batches: tuple[Batch, ...], is_stopping: Callable[[], bool] = lambda: False
    ) -> StepRecord:
        """One optimizer step, or the rest of the one that was begun.

        Raises NotFiniteError, leaving the weights, on a loss or gradient that is not finite; and
        StepInterruptedError between two micro-batches once `is_stopping`.
        """
        started = time.perf_counter()
        rate = learning_rate(self.step, self.settings) * self.rate_scale
        loss, held = self.backward(batches, self.begun, is_stopping)
        right, self.begun = self.begun.right, Begun()
        norm = self._clip()
        if not all(map(math.isfinite, (loss, norm, held or 0.0))):
            self.optimizer.zero_grad(set_to_none=True)
            rows = self.ranks.gather([row for batch in batches for row in batch.row_ids])
            raise NotFiniteError(self.step + 1, loss, norm, rows)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.refresh()
        self._follow()
        num_tokens = sum(batch.num_tokens for batch in batches)
        num_targets = sum(batch.num_target_tokens for batch in batches)
        tokens, target_tokens, right = self.ranks.total(num_tokens, num_targets, right)
        return StepRecord(
            step=self.step,
            loss=loss,
            grad_norm=norm,
            learning_rate=rate,
            tokens=int(tokens),
            target_tokens=int(target_tokens),
            elapsed_s=time.perf_counter() - started,
            replay_loss=held,
            accuracy=right / target_tokens if target_tokens else None,
        )

    def skip(self) -> None:
        """Count a step without learning from it."""
        self.step += 1

    def backward(
        self,
        batches: tuple[Batch, ...],
        begun: Begun | None = None,
        is_stopping: Callable[[], bool] = lambda: False,
    ) -> tuple[float, float | None]:
        """Accumulate the gradient of one step; returns what it is the gradient of.

        First the mean nats per target token, then, where rows are held, the mean divergence from
        the base per token of theirs. Both are summed over all batches and divided once, so how
        rows are cut into batches, or dealt out to ranks, changes nothing. `begun` tells which
        batches are done already.
        """
        begun = begun or Begun()
        num_targets, num_held = self.ranks.total(
            sum(batch.num_target_tokens for batch in batches),
            sum(batch.num_held for batch in batches),
        )
        for batch in batches[begun.batches :]:
            own, other = self._losses(batch, right := torch.zeros((), device=self.model.device))
            part = own / num_targets
            begun.loss += float(part.detach())
            begun.right += float(right)
            if other is not None:
                pull = other / num_held
                begun.held += float(pull.detach())
                part = part + self.settings.replay_weight * pull
            part.backward()
            begun.batches += 1
            # Several ranks finish the step: a part of its gradient lies with each of them.
            if begun.batches < len(batches) and self.ranks.count == 1 and is_stopping():
                raise StepInterruptedError(f"stopped within step {self.step + 1}")
        loss, held = self.ranks.total(begun.loss, begun.held)
        self._join_gradients()
        return loss, held if num_held else None

    def _join_gradients(self) -> None:
        """Add up what the ranks found for weights that each of them holds whole."""
        if self.ranks.count == 1:
            return
        for held, master in zip(self._held, self.parameters, strict=True):
            if master.grad is None:  # none of this rank's rows came by, but another's may have
                master.grad = torch.zeros_like(master)
            if not is_sharded(held):
                self.ranks.add([master.grad])

    def _clip(self) -> float:
        """Scale the gradient down to the largest norm allowed; returns what its norm was."""
        if self.ranks.count == 1:
            return float(torch.nn.utils.clip_grad_norm_(self.parameters, self.settings.clip))
        squares = {True: 0.0, False: 0.0}
        for held, master in zip(self._held, self.parameters, strict=True):
            assert master.grad is not None
            squares[is_sharded(held)] += float(master.grad.double().square().sum())
        (elsewhere,) = self.ranks.total(squares[True])
        norm = torch.tensor(math.sqrt(squares[False] + elsewhere))
        torch.nn.utils.clip_grads_with_norm_(self.parameters, self.settings.clip, norm)
        return float(norm)

    @property
    def has_average(self) -> bool:
        """Whether what is served is another set of numbers than what learns."""
        return self.average is not self.parameters

    def rewind(self, parameters: Sequence[Tensor]) -> None:
        """Start anew from `parameters`, as if no step had been done."""
        _copy(self.parameters, parameters)
        _copy(self.average, parameters)
        self.refresh()
        self.optimizer.state.clear()
        self.step = 0
        self.begun = Begun()

    def refresh(self) -> None:
        """Round the masters into the model, where the model holds copies of them."""
        for held, master in zip(self._held, self.parameters, strict=True):
            if held is not master:
                local(held).detach().copy_(master.detach())

    @contextmanager
    def averaged(self) -> Generator[None]:
        """The model with the averaged weights, while the block runs."""
        if not self.has_average:
            yield
            return
        learning = [p.detach().clone() for p in self.parameters]
        self.settle()
        try:
            yield
        finally:
            _copy(self.parameters, learning)
            self.refresh()

    def settle(self, strength: float = 1.0) -> None:
        """Leave the averaged weights in the model, at a strength: training is over."""
        if strength != 1 and not self.has_average:
            self.average = [p.detach().clone() for p in self.parameters]
        _copy(self.parameters, self.average)
        self.change.strengthen(strength, self.parameters, self.average)
        self.refresh()

    def _follow(self) -> None:
        """Move the average; the first steps count less, or the untrained start would linger."""
        if not self.has_average:
            return
        decay = min(1 - 1 / self.settings.average_steps, self.step / (self.step + 9))
        for average, parameter in zip(self.average, self.parameters, strict=True):
            average.lerp_(parameter.detach(), 1 - decay)

    def _losses(self, batch: Batch, right: Tensor) -> tuple[Tensor, Tensor | None]:
        """Summed nats of the batch's targets, and the summed divergence of its held rows; adds to
        `right` how many targets the model would have said."""
        hidden = self._hidden(batch)
        targets, weights = batch.targets.to(hidden.device), batch.weights.to(hidden.device)
        own = slice(batch.num_target_tokens)
        loss = nats(hidden[own], self._head, targets[own], weights[own], right)
        if not batch.held:
            return loss, None
        rest = slice(batch.num_target_tokens, None)
        teacher = self._teacher(batch.held)
        return loss, divergence(hidden[rest], self._head, teacher, weights[rest], self._former())

    def _hidden(self, batch: Batch) -> Tensor:
        """Final hidden states (n, D) at the batch's targets, from the kept trunk where there is."""
        with self.trunk.entered(batch) if self.trunk else nullcontext():
            return hidden_states(self.model, batch.ids, batch.layout, batch.target_index)

    def _former(self) -> Head:
        """The base's head."""
        head, of_base = self._head, self.change.of_base
        bias = None if head.bias is None else of_base(head.bias).detach()
        return replace(head, weight=of_base(head.weight).detach(), bias=bias)

    def _teacher(self, rows: tuple[Example, ...]) -> Tensor:
        """The base's hidden states at the targets of held rows (n, D), computed once and kept.

        Kept for these rows together, and for these tokens of theirs: alone or with others, their
        last bits would differ, and a resumed run meets them in another order.
        """
        if rows not in self._teachers:
            batch = pack(list(rows))
            with torch.no_grad(), self.change.base():
                self._teachers[rows] = self._hidden(batch)
        return self._teachers[rows]


def _copy(into: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for place, value in zip(into, values, strict=True):
            place.copy_(value)


def _groups(parameters: Sequence[nn.Parameter], decay: float) -> list[dict[str, Any]]:
    """Matrices decay; norms and biases, which have one axis, do not."""
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
