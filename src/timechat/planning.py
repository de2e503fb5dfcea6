"""Will it fit, how long, at what settings, and why: the recipe's `auto`s resolved.

Pure arithmetic over what is known of the model, the rows and the machine; measuring those is the
stage's work. Every number carries the rule that made it, so that it can be argued with.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from timechat.recipe import Lora, Qlora, Recipe
from timechat.records import Derived, Plan

# Share of the matrix rate that a whole training step reaches (bench/RESULTS.md).
STEP_EFFICIENCY = 0.40
# Rows that training sees where epochs are `auto`: past it, answers to new questions gain little.
ROWS_SEEN = 1500
# Rows a step from so many rows on: where steps are many, larger ones are faster (bench/RESULTS.md,
# banking77).
STEP_ROWS = ((8192, 64), (4096, 32), (128, 16), (0, 8))
# The learning rate found best at one width; wider models want it smaller in proportion (the rule
# for hidden layers in Yang et al. 2022, arXiv:2203.03466, which agrees with the 2e-4 usual at 7B).
BASE_RATE, BASE_HIDDEN = 2e-3, 576
# A model's own weights learn at a tenth of the rate of adapters (Schulman et al. 2025, "LoRA
# without regret"); not measured here yet.
LORA_RATE_FACTOR = 10
# User turns up to this many words are questions; longer ones are texts, whose every word may count.
SHORT_QUESTION = 32
GIB = 2**30


@dataclass(frozen=True, slots=True)
class Rows:
    """What the plan knows of the rows: their number, real tokens, target tokens, the longest.

    `shared_tokens` open every row and are computed once a step; `question_words` is the mean length
    of a user turn.
    """

    num_train: int
    tokens: int
    shared_tokens: int
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
    # The lowest layer with a weight that learns: nothing below it is gone back through.
    lowest: int = 0
    activation: str = ""
    # How rows are read, and what that means: known once the model itself has been tried.
    reading: tuple[str, str] | None = None


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
        shape.trained,
        f"rank {recipe.adapt.rank} × (in + out) of every adapted layer"
        if isinstance(recipe.adapt, Lora)
        else f"the model's own weights that adapt.method = {recipe.adapt.method} lets learn",
    )
    numbers["rows"] = Derived(rows.num_train, "training rows")
    numbers["row_tokens"] = Derived(rows.tokens, "real tokens of the training rows")
    if shape.reading is not None:
        numbers["reading"] = Derived(*shape.reading)
    _learning(numbers, recipe, rows, shape)
    _lengths(numbers, recipe, rows, shape)
    _bytes(numbers, recipe, rows, shape, machine)
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
    (large, most), (many, more), (usual, rows_usual), (_, fewest) = STEP_ROWS
    numbers["batch_rows"] = _given(
        train.batch_rows,
        next(size for least, size in STEP_ROWS if rows.num_train >= least),
        f"{rows_usual} rows a step: LoRA learns best in small steps; {fewest} below {usual} rows, "
        f"{more} from {many:,} and {most} from {large:,}, where steps are many and larger ones "
        "faster",
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
    base = BASE_RATE if isinstance(recipe.adapt, Lora) else BASE_RATE / LORA_RATE_FACTOR
    rate = float(f"{base * min(1.0, BASE_HIDDEN / shape.hidden):.1e}")
    numbers["learning_rate"] = _given(
        train.learning_rate,
        rate,
        f"{base:g} up to hidden size {BASE_HIDDEN} "
        + ("(LAB.md)" if isinstance(recipe.adapt, Lora) else "(a tenth of what LoRA takes)")
        + ", beyond it as 1 / hidden size",
    )
    short = rows.question_words <= SHORT_QUESTION
    again = numbers["epochs"].value >= 2
    numbers["word_dropout"] = _given(
        train.word_dropout,
        0.2 if short and again and not shape.lowest else 0.0,
        "0: what the frozen layers put out is kept, so rows must stay as they are"
        if shape.lowest
        else f"0.2 where a row is seen twice or more and a user turn has at most {SHORT_QUESTION} "
        f"words on average (here {rows.question_words:.0f}), else 0: answers should not hang on "
        "one word (LAB.md)",
    )
    _adapt(numbers, recipe, shape)
    validations = min(8, max(1, numbers["steps"].value // 10))
    numbers["validations"] = _given(
        train.validations, validations, "one every 10 steps, at most 8 over the run"
    )
    every = max(1, math.ceil(numbers["steps"].value / numbers["validations"].value))
    numbers["validate_every"] = Derived(every, "steps / validations, rounded up")
    numbers["checkpoint_every"] = _given(train.checkpoint_every, every, "at every validation")


def _adapt(numbers: dict[str, Derived], recipe: Recipe, shape: Shape) -> None:
    adapt = recipe.adapt
    if isinstance(adapt, Lora):
        rule = "2 × rank, so that rank is only capacity"
        numbers["alpha"] = _given(adapt.alpha, 2.0 * adapt.rank, rule)
    if adapt.activation is not None:
        numbers["activation"] = Derived(
            adapt.activation,
            f"as the recipe says, where the base has {shape.activation}: every layer computes "
            "something else than it learned, so expect to lose general ability; plain PEFT does "
            "not know of it (compare with a run without it)",
        )


def _lengths(numbers: dict[str, Derived], recipe: Recipe, rows: Rows, shape: Shape) -> None:
    longest = min(shape.window, max(64, 2 ** math.ceil(math.log2(max(2, rows.longest)))), 2048)
    numbers["max_length"] = _given(
        recipe.train.max_length, longest, "the longest row, at most 2,048 and the model's window"
    )
    answer = min(256, max(16, math.ceil(1.5 * rows.reference_tokens) + 8))
    numbers["max_new_tokens"] = _given(
        recipe.evaluate.max_new_tokens, answer, "1.5 × the longest usual reference answer + 8"
    )


def _bytes(
    numbers: dict[str, Derived], recipe: Recipe, rows: Rows, shape: Shape, machine: Machine
) -> None:
    batch = numbers["batch_rows"].value
    per_row = rows.tokens / max(1, rows.num_train)
    numbers["step_tokens"] = Derived(
        max(rows.longest, round(per_row * batch)), "mean row × rows a step"
    )
    _computed(numbers, recipe, rows, shape)
    states, states_rule = _state_bytes(recipe, shape)
    weights, weights_rule = _weight_bytes(recipe, shape)

    def total(micro: int, again: bool) -> int:
        # Kept for the backward pass, in bf16: about 14 vectors of the hidden size and 5 of the
        # intermediate size in every layer that is gone back through, or in one and the inputs of
        # the others.
        tokens = max(rows.longest, round(per_row * micro))
        layers = shape.layers - shape.lowest
        inside = 14 * shape.hidden + 5 * shape.intermediate
        kept = inside + layers * shape.hidden if again else layers * inside
        training = weights + states + tokens * kept * 2
        # The base is loaded as it is, whatever it becomes.
        return max(training, shape.weight_bytes) + GIB // 2

    wanted = recipe.train.recompute
    again, micro = wanted is True, batch
    if recipe.train.micro_rows == "auto":
        while micro > 1 and total(micro, again) > machine.memory_bytes:
            micro = -(-micro // 2)
    else:
        micro = min(batch, recipe.train.micro_rows)
    if wanted == "auto" and total(micro, again) > machine.memory_bytes:
        again = True
    numbers["micro_rows"] = _given(
        recipe.train.micro_rows, micro, "the rows of a step, halved until a step fits the memory"
    )
    numbers["recompute"] = _given(
        wanted, again, "only where a single row does not fit otherwise: a third more arithmetic"
    )
    _trunk(numbers, recipe, rows, shape, machine, total(micro, again))
    numbers["memory_bytes"] = Derived(
        total(micro, again)
        + (numbers["trunk_bytes"].value if numbers["trunk"].value == "memory" else 0),
        f"{weights_rule} + {states_rule} + activations of {micro} rows + 0.5 GiB",
    )
    saved = 4 * _has_average(recipe) + 12
    whole = 0 if isinstance(recipe.adapt, Lora) else shape.weight_bytes
    numbers["checkpoint_bytes"] = Derived(
        whole + shape.trained * saved + 4_000_000,
        f"{saved} bytes a trained weight{' + the model' if whole else ''}",
    )


def _computed(numbers: dict[str, Derived], recipe: Recipe, rows: Rows, shape: Shape) -> None:
    """What a step really works out: its rows' tokens, and those that hold the model to its base."""
    batch = min(numbers["batch_rows"].value, max(1, rows.num_train))
    is_padded = shape.reading is not None and shape.reading[0] == "padded"
    shared = 0 if is_padded else rows.shared_tokens
    own = rows.tokens / max(1, rows.num_train) - shared
    numbers["computed_tokens"] = Derived(
        round(shared + batch * own),
        f"the {shared} tokens that all rows begin with once a step, the rest of the mean row × "
        "rows a step",
    )
    share = recipe.train.replay if recipe.train.replay_weight else 0.0
    whose = "the base's own answers" if recipe.train.replay_from == "base" else "shipped texts"
    numbers["replay_share"] = Derived(
        share,
        f"train.replay: of a step's computed tokens, {whose} on which the model is held to its "
        "base",
    )
    numbers["replay_tokens"] = Derived(
        round(numbers["computed_tokens"].value * share / (1 - min(share, 0.9))),
        "so many beside a step's computed tokens in the mean, at least one general row",
    )


def _trunk(
    numbers: dict[str, Derived],
    recipe: Recipe,
    rows: Rows,
    shape: Shape,
    machine: Machine,
    memory: int,
) -> None:
    """Whether the frozen layers' output is kept: in memory, on disk, or not at all."""
    share = min(recipe.train.replay, 0.9)
    size = round(shape.weight_bytes / shape.parameters)
    need = round(rows.tokens / (1 - share)) * shape.hidden * size
    numbers["frozen_layers"] = Derived(shape.lowest, "layers below the lowest that learns")
    place, rule = "no", ""
    if not shape.lowest:
        rule = "no layer below the lowest that learns"
    elif numbers["epochs"].value <= 1:
        rule = "each row is seen once"
    elif numbers["word_dropout"].value:
        rule = "train.word_dropout changes the rows at each sight"
    elif recipe.adapt.activation is not None:
        rule = "the base that the run is held to has another activation in these layers"
    elif memory + need <= machine.memory_bytes:
        place, rule = "memory", f"{shape.lowest} frozen layers need not be worked out again"
    elif need <= machine.disk_bytes // 2:
        place, rule = "disk", "too large for the memory"
    else:
        rule = "too large for memory and disk"
    numbers["trunk"] = Derived(place, rule)
    numbers["trunk_bytes"] = Derived(
        0 if place == "no" else need, "rows' and replay's tokens × hidden size × bytes a number"
    )


def _weight_bytes(recipe: Recipe, shape: Shape) -> tuple[int, str]:
    """What the frozen or learning model itself takes while training: bytes and rule."""
    if not isinstance(recipe.adapt, Qlora):
        return shape.weight_bytes, "weights"
    bits = recipe.adapt.bits
    size = shape.weight_bytes / shape.parameters
    # An absmax in fp32 to every 64 weights.
    trunk = shape.trunk * (bits / 8 + 4 / 64)
    rest = (shape.parameters - shape.trunk) * size
    return round(trunk + rest), f"layers in {bits} bits and a scale every 64"


def _has_average(recipe: Recipe) -> bool:
    return recipe.train.average > 0


def _state_bytes(recipe: Recipe, shape: Shape) -> tuple[int, str]:
    """What training keeps of the weights that learn, beside the model: bytes and rule."""
    average = 4 * _has_average(recipe)
    if isinstance(recipe.adapt, Lora):
        each = 16 + average
        return shape.trained * each, f"{each} bytes a trained weight"
    size = round(shape.weight_bytes / shape.parameters)
    # Gradient 4 and AdamW 8; what the weight was; a master where the model's own is not fp32.
    each = 12 + average + size + (4 if size < 4 else 0)
    return shape.trained * each, f"{each} bytes a trained weight (its original among them)"


def _seconds(
    numbers: dict[str, Derived], recipe: Recipe, rows: Rows, shape: Shape, machine: Machine
) -> None:
    steps = rows.num_train / numbers["batch_rows"].value
    computed = numbers["computed_tokens"].value * steps
    held = numbers["replay_tokens"].value * steps
    is_lora = isinstance(recipe.adapt, Lora)
    # Forwards through all weights, backwards to the lowest that learns, and the gradients of those
    # that do; an adapter's weights are beside the trunk's and go forwards too.
    reach = 1 - shape.lowest / max(1, shape.layers)
    learned = 6 * shape.trained if is_lora else 2 * min(shape.trained, reach * shape.trunk)
    # The frozen part of the forward pass is done once where its output is kept.
    frozen = 2 * shape.trunk * (1 - reach)
    if numbers["trunk"].value != "no":
        frozen /= numbers["epochs"].value
    trunk = (computed + held) * (4 * shape.trunk * reach + frozen + learned)
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
            "a smaller base, train.max_length or adapt.method = lora"
        )
    disk = 4 * numbers["checkpoint_bytes"].value
    if disk > machine.disk_bytes:
        return (
            f"checkpoints need about {disk / GIB:.2f} GiB of disk and "
            f"{machine.disk_bytes / GIB:.2f} GiB are free"
        )
    return ""
