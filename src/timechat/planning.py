"""Will it fit, how long, at what settings, and why: the recipe's `auto`s resolved.

Pure arithmetic over what is known of the model, the rows and the machine; measuring those is the
stage's work. Every number carries the rule that made it, so that it can be argued with.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from timechat.recipe import Recipe
from timechat.records import Derived, Plan

# Share of the matrix rate that a whole training step reaches (bench/RESULTS.md).
STEP_EFFICIENCY = 0.40
# Rows that training sees where epochs are `auto`: past it, answers to new questions gain little.
ROWS_SEEN = 1500
# The learning rate found best at one width; wider models want it smaller in proportion (the rule
# for hidden layers in Yang et al. 2022, arXiv:2203.03466, which agrees with the 2e-4 usual at 7B).
BASE_RATE, BASE_HIDDEN = 2e-3, 576
# User turns up to this many words are questions; longer ones are texts, whose every word may count.
SHORT_QUESTION = 32
GIB = 2**30


@dataclass(frozen=True, slots=True)
class Rows:
    """What the plan knows of the rows: their number, real tokens, target tokens, the longest.

    `question_words` is the mean length of a user turn.
    """

    num_train: int
    tokens: int
    computed_tokens: int
    target_tokens: int
    longest: int
    reference_tokens: int
    question_words: float


@dataclass(frozen=True, slots=True)
class Shape:
    """What the plan knows of the model."""

    parameters: int
    trained: int
    trunk: int
    layers: int
    hidden: int
    intermediate: int
    vocabulary: int
    window: int
    weight_bytes: int


@dataclass(frozen=True, slots=True)
class Machine:
    """What the plan knows of the machine."""

    name: str
    memory_bytes: int
    disk_bytes: int
    matrix_flops: float


def make_plan(recipe: Recipe, rows: Rows, shape: Shape, machine: Machine) -> Plan:
    """The plan of a run; `fits` is False, with the reason, when memory or disk is too small."""
    numbers: dict[str, Derived] = {}
    numbers["parameters"] = Derived(shape.parameters, "counted")
    numbers["trained_parameters"] = Derived(
        shape.trained, f"rank {recipe.adapt.rank} × (in + out) of every adapted layer"
    )
    numbers["rows"] = Derived(rows.num_train, "training rows")
    numbers["row_tokens"] = Derived(rows.tokens, "real tokens of the training rows")
    _learning(numbers, recipe, rows, shape)
    _lengths(numbers, recipe, rows, shape)
    _bytes(numbers, rows, shape)
    _seconds(numbers, recipe, rows, shape, machine)
    refusal = _refusal(numbers, machine)
    about = {
        "name": machine.name,
        "memory_bytes": machine.memory_bytes,
        "disk_bytes": machine.disk_bytes,
        "matrix_gflops": round(machine.matrix_flops / 1e9),
    }
    return Plan(not refusal, numbers, about, refusal)


def _given(value: Any, otherwise: Any, rule: str) -> Derived:
    """The recipe's own value, or the derived one with its rule where it says `auto`."""
    return Derived(otherwise, rule) if value == "auto" else Derived(value, "as the recipe says")


def _learning(numbers: dict[str, Derived], recipe: Recipe, rows: Rows, shape: Shape) -> None:
    train = recipe.train
    batch = 16 if rows.num_train >= 128 else 8
    numbers["batch_rows"] = _given(
        train.batch_rows, batch, "16 rows a step, 8 below 128 rows: LoRA learns best in small steps"
    )
    epochs = min(10.0, max(1.0, round(ROWS_SEEN / max(1, rows.num_train), 1)))
    numbers["epochs"] = _given(
        train.epochs,
        epochs,
        f"{ROWS_SEEN:,} rows seen, each between 1 and 10 times (LAB.md, the mixture)",
    )
    steps = math.ceil(rows.num_train * numbers["epochs"].value / numbers["batch_rows"].value)
    numbers["steps"] = Derived(max(1, steps), "rows × epochs / rows a step, rounded up")
    numbers["warmup_steps"] = Derived(
        max(1, round(train.warmup * max(1, steps))), f"{train.warmup:.0%} of the steps"
    )
    rate = float(f"{BASE_RATE * min(1.0, BASE_HIDDEN / shape.hidden):.1e}")
    numbers["learning_rate"] = _given(
        train.learning_rate,
        rate,
        f"{BASE_RATE:g} up to hidden size {BASE_HIDDEN} (LAB.md), beyond it as 1 / hidden size",
    )
    short = rows.question_words <= SHORT_QUESTION
    numbers["word_dropout"] = _given(
        train.word_dropout,
        0.2 if short else 0.0,
        f"0.2 where a user turn has at most {SHORT_QUESTION} words on average (here "
        f"{rows.question_words:.0f}), else 0: answers should not hang on one word (LAB.md)",
    )
    alpha = 2.0 * recipe.adapt.rank
    numbers["alpha"] = _given(recipe.adapt.alpha, alpha, "2 × rank, so that rank is only capacity")
    validations = min(8, max(1, numbers["steps"].value // 10))
    numbers["validations"] = _given(
        train.validations, validations, "one every 10 steps, at most 8 over the run"
    )
    every = max(1, math.ceil(numbers["steps"].value / numbers["validations"].value))
    numbers["validate_every"] = Derived(every, "steps / validations, rounded up")
    numbers["checkpoint_every"] = _given(train.checkpoint_every, every, "at every validation")


def _lengths(numbers: dict[str, Derived], recipe: Recipe, rows: Rows, shape: Shape) -> None:
    longest = min(shape.window, max(64, 2 ** math.ceil(math.log2(max(2, rows.longest)))), 2048)
    numbers["max_length"] = _given(
        recipe.train.max_length, longest, "the longest row, at most 2,048 and the model's window"
    )
    answer = min(256, max(16, math.ceil(1.5 * rows.reference_tokens) + 8))
    numbers["max_new_tokens"] = _given(
        recipe.evaluate.max_new_tokens, answer, "1.5 × the longest usual reference answer + 8"
    )


def _bytes(numbers: dict[str, Derived], rows: Rows, shape: Shape) -> None:
    per_row = rows.tokens / max(1, rows.num_train)
    step_tokens = max(rows.longest, round(per_row * numbers["batch_rows"].value))
    # Kept for the backward pass, in bf16: about 14 vectors of the hidden size and 5 of the
    # intermediate size in every layer.
    activations = step_tokens * shape.layers * (14 * shape.hidden + 5 * shape.intermediate) * 2
    states = shape.trained * 16
    numbers["step_tokens"] = Derived(step_tokens, "mean row × rows a step")
    total = shape.weight_bytes + states + activations + GIB // 2
    numbers["memory_bytes"] = Derived(
        total, "weights + 16 bytes a trained weight + activations of one step + 0.5 GiB"
    )
    numbers["checkpoint_bytes"] = Derived(
        shape.trained * 12 + 4_000_000, "12 bytes a trained weight"
    )


def _seconds(
    numbers: dict[str, Derived], recipe: Recipe, rows: Rows, shape: Shape, machine: Machine
) -> None:
    share = recipe.train.replay
    held = share / (1 - min(share, 0.9)) * rows.tokens
    # Forwards and backwards through frozen weights, and the gradients of the trained ones.
    trunk = (rows.computed_tokens + held) * (4 * shape.trunk + 6 * shape.trained)
    # Logits where there is a target, and the base's beside them on held rows.
    head = (4 * rows.target_tokens + 6 * held) * shape.vocabulary * shape.hidden
    flops = numbers["epochs"].value * (trunk + head)
    seconds = flops / (machine.matrix_flops * STEP_EFFICIENCY)
    numbers["train_seconds"] = Derived(
        round(seconds), f"operations / ({STEP_EFFICIENCY:.0%} of the measured matrix rate)"
    )


def _refusal(numbers: dict[str, Derived], machine: Machine) -> str:
    need, have = numbers["memory_bytes"].value, machine.memory_bytes
    if need > have:
        return (
            f"training needs about {need / GIB:.1f} GiB and {have / GIB:.1f} GiB are free: choose "
            "a smaller base, train.max_length or train.batch_rows"
        )
    disk = 4 * numbers["checkpoint_bytes"].value
    if disk > machine.disk_bytes:
        return (
            f"checkpoints need about {disk / GIB:.2f} GiB of disk and "
            f"{machine.disk_bytes / GIB:.2f} GiB are free"
        )
    return ""
