"""What a run will take: memory, disk and time."""

from __future__ import annotations

from timechat.planning.facts import GIB, Facts, Numbers, given
from timechat.recipe import Lora, Qlora, Recipe
from timechat.records import Derived

# Share of the matrix rate that a whole training step reaches (bench/RESULTS.md).
STEP_EFFICIENCY = 0.40


def plan_bytes(numbers: Numbers, facts: Facts) -> None:
    """The tokens of a step, what they take of the memory, and what a checkpoint takes on disk."""
    rows = facts.rows
    mean_row = rows.tokens / max(1, rows.num_train)
    numbers["step_tokens"] = Derived(
        max(rows.longest, round(mean_row * numbers["batch_rows"].value)), "mean row × rows a step"
    )
    _computed_tokens(numbers, facts)
    memory, rule = _fit_memory(numbers, facts)
    _trunk(numbers, facts, memory)
    kept = numbers["trunk_bytes"].value if numbers["trunk"].value == "memory" else 0
    numbers["memory_bytes"] = Derived(memory + kept, rule)
    saved = 4 * _has_average(facts.recipe) + 12
    whole = 0 if isinstance(facts.recipe.adapt, Lora) else facts.shape.weight_bytes
    numbers["checkpoint_bytes"] = Derived(
        whole + facts.shape.trained * saved + 4_000_000,
        f"{saved} bytes a trained weight{' + the model' if whole else ''}",
    )


def plan_seconds(numbers: Numbers, facts: Facts) -> None:
    """The operations of all epochs, at the rate that the machine was measured to reach."""
    rows, shape = facts.rows, facts.shape
    steps = rows.num_train / numbers["batch_rows"].value
    computed = numbers["computed_tokens"].value * steps
    held = numbers["replay_tokens"].value * steps
    is_lora = isinstance(facts.recipe.adapt, Lora)
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
    seconds = flops / (facts.machine.matrix_flops * STEP_EFFICIENCY)
    numbers["train_seconds"] = Derived(
        round(seconds), f"operations / ({STEP_EFFICIENCY:.0%} of the measured matrix rate)"
    )


def _computed_tokens(numbers: Numbers, facts: Facts) -> None:
    """What a step really works out: its rows' tokens, and those that hold the model to its base."""
    train, rows, reading = facts.recipe.train, facts.rows, facts.shape.reading
    batch = min(numbers["batch_rows"].value, max(1, rows.num_train))
    is_padded = reading is not None and reading[0] == "padded"
    shared = 0 if is_padded else rows.shared_tokens
    own = rows.tokens / max(1, rows.num_train) - shared
    numbers["computed_tokens"] = Derived(
        round(shared + batch * own),
        f"the {shared} tokens that all rows begin with once a step, the rest of the mean row × "
        "rows a step",
    )
    share = train.replay if train.replay_weight else 0.0
    whose = "the base's own answers" if train.replay_from == "base" else "shipped texts"
    numbers["replay_share"] = Derived(
        share,
        f"train.replay: of a step's computed tokens, {whose} on which the model is held to its "
        "base",
    )
    numbers["replay_tokens"] = Derived(
        round(numbers["computed_tokens"].value * _replayed(facts)),
        "so many beside a step's computed tokens in the mean, at least one general row",
    )


def _replayed(facts: Facts) -> float:
    """Tokens that hold the model to its base, for each of the rows' own that a step computes."""
    train = facts.recipe.train
    return train.replay / (1 - min(train.replay, 0.9)) if train.replay_weight else 0.0


def _fit_memory(numbers: Numbers, facts: Facts) -> tuple[int, str]:
    """Cut a step until it fits the memory; returns the bytes it then takes, and their rule."""
    train, memory = facts.recipe.train, facts.machine.memory_bytes
    batch = numbers["batch_rows"].value
    again, micro = train.recompute is True, batch
    if train.micro_rows == "auto":
        while micro > 1 and _training_bytes(facts, micro, again) > memory:
            micro = -(-micro // 2)
    else:
        micro = min(batch, train.micro_rows)
    if train.recompute == "auto" and _training_bytes(facts, micro, again) > memory:
        again = True
    numbers["micro_rows"] = given(
        train.micro_rows, micro, "the rows of a step, halved until a step fits the memory"
    )
    numbers["recompute"] = given(
        train.recompute,
        again,
        "only where a single row does not fit otherwise: a third more arithmetic",
    )
    _, weights = _weight_bytes(facts)
    _, states = _state_bytes(facts)
    rule = f"{weights} + {states} + activations of {micro} rows + 1 GiB"
    return _training_bytes(facts, micro, again), rule


def _training_bytes(facts: Facts, micro: int, recomputes: bool) -> int:
    """The memory of training with `micro` rows at a time.

    Kept for the backward pass, in the model's number format: about 14 vectors of the hidden size
    and 5 of the intermediate size in every layer that is gone back through, or in one and the
    inputs of the others.
    """
    rows, shape = facts.rows, facts.shape
    tokens = max(rows.longest, round(rows.tokens / max(1, rows.num_train) * micro))
    # What a step replays is read beside its own rows.
    tokens = round(tokens * (1 + _replayed(facts)))
    layers = shape.layers - shape.lowest
    inside = 14 * shape.hidden + 5 * shape.intermediate
    kept = inside + layers * shape.hidden if recomputes else layers * inside
    (weights, _), (states, _) = _weight_bytes(facts), _state_bytes(facts)
    training = weights + states + tokens * kept * shape.number_bytes
    # The base is loaded as it is, whatever it becomes. Python and torch take half a GiB, compiled
    # kernels and pieces that were freed between others as much (a 7B run, bench/RESULTS.md).
    return max(training, shape.weight_bytes) + GIB


def _trunk(numbers: Numbers, facts: Facts, memory: int) -> None:
    """Whether the frozen layers' output is kept: in memory, on disk, or not at all."""
    recipe, rows, shape, machine = facts.recipe, facts.rows, facts.shape, facts.machine
    share = min(recipe.train.replay, 0.9)
    need = round(rows.tokens / (1 - share)) * shape.hidden * shape.number_bytes
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


def _weight_bytes(facts: Facts) -> tuple[int, str]:
    """What the frozen or learning model itself takes while training: bytes and rule."""
    adapt, shape = facts.recipe.adapt, facts.shape
    if not isinstance(adapt, Qlora):
        return shape.weight_bytes, "weights"
    # An absmax in fp32 to every 64 weights.
    trunk = shape.trunk * (adapt.bits / 8 + 4 / 64)
    rest = (shape.parameters - shape.trunk) * shape.number_bytes
    return round(trunk + rest), f"layers in {adapt.bits} bits and a scale every 64"


def _state_bytes(facts: Facts) -> tuple[int, str]:
    """What training keeps of the weights that learn, beside the model: bytes and rule."""
    recipe, shape = facts.recipe, facts.shape
    average = 4 * _has_average(recipe)
    if isinstance(recipe.adapt, Lora):
        each = 16 + average
        return shape.trained * each, f"{each} bytes a trained weight"
    size = shape.number_bytes
    # Gradient 4 and AdamW 8; what the weight was; a master where the model's own is not fp32.
    each = 12 + average + size + (4 if size < 4 else 0)
    return shape.trained * each, f"{each} bytes a trained weight (its original among them)"


def _has_average(recipe: Recipe) -> bool:
    return recipe.train.average > 0
