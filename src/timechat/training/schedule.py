"""What the loop needs of the plan, and the learning rate at each step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Schedule = Literal["cosine", "linear", "constant"]


@dataclass(frozen=True, slots=True)
class Settings:
    """What the loop needs of the plan."""

    num_steps: int
    learning_rate: float
    warmup_steps: int
    weight_decay: float
    clip: float
    replay_weight: float
    # How many steps the served weights are averaged over; 0 serves the last step's.
    average_steps: float = 0.0
    schedule: Schedule = "cosine"


def learning_rate(step: int, settings: Settings) -> float:
    """Linear warm-up, then a cosine to zero (Loshchilov and Hutter 2016, arXiv:1608.03983), a line
    to zero, or a constant."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    done = (step - settings.warmup_steps) / max(1, settings.num_steps - settings.warmup_steps)
    done = min(1.0, done)
    if settings.schedule == "constant":
        return settings.learning_rate
    if settings.schedule == "linear":
        return settings.learning_rate * (1 - done)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
