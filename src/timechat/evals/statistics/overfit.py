"""Overfitting, named: the step where it began, by how much, and which checkpoint to take instead.

Training tells itself apart from validation in two ways. The loss on held-out rows rises while the
training loss still falls; that alone is harmless (a model that learns facts grows sure of itself),
so it is named but no alarm. When the held-out answers get worse too, by more than chance, it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Look:
    """One validation: loss and accuracy with their standard errors, and the training loss then."""

    step: int
    loss: float
    loss_error: float
    accuracy: float
    accuracy_error: float
    train_loss: float | None = None


@dataclass(frozen=True, slots=True)
class Overfit:
    """`found` is `none`, `sure of itself` (the loss rises, answers do not suffer) or `overfitted`.

    `began` is the step of the lowest validation loss, `loss_rise` how far the last one lies above
    it with its 95 % interval, `gap` the last validation loss minus the last training loss, `take`
    the step of the best held-out answers.
    """

    found: str
    began: int
    take: int
    loss_rise: float
    rise_ci95: tuple[float, float]
    accuracy_lost: float
    gap: float | None
    text: str


def name_overfit(looks: Sequence[Look]) -> Overfit | None:
    """What the validations of a run tell; None with fewer than three."""
    if len(looks) < 3:
        return None
    low = min(looks, key=lambda look: (look.loss, look.step))
    best = max(looks, key=lambda look: (look.accuracy, look.step))
    last = looks[-1]
    rise = last.loss - low.loss
    # Both losses are of the same rows, so their errors together are an upper bound.
    reach = 1.96 * math.hypot(low.loss_error, last.loss_error)
    after = [look for look in looks if look.step > low.step]
    # Two in a row: one validation above the lowest is a wobble.
    rises = len(after) >= 2 and all(look.loss > low.loss for look in after[-2:])
    lost = best.accuracy - last.accuracy
    worse = lost > 1.96 * math.hypot(best.accuracy_error, last.accuracy_error)
    found = "none"
    if rises and rise > reach:
        found = "overfitted" if worse else "sure of itself"
    gap = None if last.train_loss is None else last.loss - last.train_loss
    bounds = (rise - reach, rise + reach)
    return Overfit(
        found, low.step, best.step, rise, bounds, lost, gap, _tell(found, low, best, last, bounds)
    )


def _tell(found: str, low: Look, best: Look, last: Look, ci95: tuple[float, float]) -> str:
    if found == "none":
        return (
            f"no overfitting: validation loss {last.loss:.3f} at step {last.step}, its lowest "
            f"{low.loss:.3f}"
        )
    rise = f"{last.loss - low.loss:+.3f} nats a token [{ci95[0]:+.3f}, {ci95[1]:+.3f}]"
    began = f"validation loss has risen since step {low.step} ({rise})"
    if found == "sure of itself":
        return (
            f"{began}, but held-out answers did not get worse "
            f"({low.accuracy:.1%} to {last.accuracy:.1%} of tokens): sure of itself, no worse"
        )
    return (
        f"overfitted: {began} and held-out answers fell from {best.accuracy:.1%} to "
        f"{last.accuracy:.1%} of tokens; take step {best.step} instead"
    )
