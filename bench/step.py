"""One training step of the starter: beside its own matrix products, and with a shared opening.

    python bench/step.py [--steps 5] [--rows 16]

Two ratios, each measured in this one process:

- **Share of the limit**: the step's matrix products, recorded with their sizes, strides and types
  and then run alone, one shape after the other, over the time of the whole step. What is missing
  to 100 % is everything that is not a matrix product.
- **Shared opening**: rows of 300 shared and 100 own tokens, with the opening computed once a step,
  over the same rows with it computed for each.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from train_speed import ALPHA, RANK, RATE, load_rows

SHARED, OWN = 300, 100
aten = torch.ops.aten
PRODUCTS = {aten.mm.default, aten.bmm.default, aten.addmm.default, aten.addmm_.default}
Call = tuple[Any, tuple[tuple[tuple[int, ...], tuple[int, ...], torch.dtype], ...]]


class Products(TorchDispatchMode):
    """Counts every matrix product by operation, sizes, strides and types."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[Call] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in PRODUCTS:
            shapes = tuple((tuple(x.shape), x.stride(), x.dtype) for x in args)
            self.calls[func, shapes] += 1
        return func(*args, **(kwargs or {}))


def time_alone(call: Call, repeat: int = 5) -> float:
    """Seconds of one product at these shapes, the median of some runs after one to warm up."""
    operation, shapes = call
    operands = []
    for size, stride, dtype in shapes:
        place = torch.empty_strided(size, stride, dtype=dtype)
        operands.append(place.copy_(torch.randn(size)))
    times = []
    for _ in range(repeat + 1):
        started = time.perf_counter()
        operation(*operands)
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def build_trainer(steps: int) -> tuple[Any, Any]:
    from timechat.model.adapt import attach
    from timechat.model.load import load, resolve
    from timechat.training.schedule import Settings
    from timechat.training.trainer import Trainer

    loaded = load(resolve("starter"))
    attach(loaded.model, RANK, ALPHA, "all")
    trainer = Trainer(loaded.model, Settings(steps, RATE, 1, 0.0, 1.0, 0.0))
    trainer.model.train()
    return loaded, trainer


def time_steps(trainer: Any, batch: Any, steps: int) -> list[float]:
    times = []
    for _ in range(steps + 1):
        started = time.perf_counter()
        trainer.advance((batch,))
        times.append(time.perf_counter() - started)
    return times[1:]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rows", type=int, default=16)
    given = parser.parse_args()
    from timechat.conversation import Conversation
    from timechat.data.pack import Example, encode, pack
    from timechat.model.machine import machine_name

    loaded, trainer = build_trainer(100)
    print(machine_name())
    rows = [Conversation.from_dict(row) for row in load_rows(given.rows, "")]
    batch = pack([encode(row, loaded.renderer) for row in rows])
    trainer.advance((batch,))
    with Products() as found:
        trainer.advance((batch,))
    step = statistics.median(time_steps(trainer, batch, given.steps))
    limit = sum(count * time_alone(call) for call, count in found.calls.items())
    print(
        f"step {step:.3f} s, its {found.calls.total()} matrix products alone {limit:.3f} s: "
        f"{limit / step:.0%} of the limit"
    )

    draw = random.Random(0)
    opening = tuple(draw.randrange(1000, 40_000) for _ in range(SHARED))
    examples = [
        Example(
            (*opening, *(draw.randrange(1000, 40_000) for _ in range(OWN))),
            (0.0,) * (SHARED + OWN - 20) + (1.0,) * 20,
            str(i),
        )
        for i in range(given.rows)
    ]
    once, each = (pack(examples, share_prefix=share) for share in (True, False))
    pairs = [
        (time_steps(trainer, each, 1)[0], time_steps(trainer, once, 1)[0])
        for _ in range(max(1, given.steps // 2))
    ]
    ratio = statistics.median(slow / fast for slow, fast in pairs)
    print(f"an opening of {SHARED} tokens shared by {given.rows} rows: {ratio:.2f} times as fast")


if __name__ == "__main__":
    main()
