"""The time at the end of each step of a `transformers` trainer, and each loss it logs.

For TRL and for tools in environments of their own, so nothing of TimeChat is imported here.
"""

from __future__ import annotations

import time
from typing import Any

from transformers import TrainerCallback


class Clock(TrainerCallback):
    def __init__(self) -> None:
        self.times: list[float] = []
        self.losses: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.times.append(time.perf_counter())

    def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
        if "loss" in logs:
            self.losses.append(float(logs["loss"]))

    def told(self) -> dict[str, float]:
        """Seconds of all steps but the first, their share of all, the first and the last loss."""
        return {
            "seconds": self.times[-1] - self.times[0],
            "share": (len(self.times) - 1) / len(self.times),
            "first": self.losses[0],
            "last": self.losses[-1],
        }
