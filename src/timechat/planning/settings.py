"""How a run will learn: rows a step, epochs, rates, lengths, and how often it is looked at."""

from __future__ import annotations

import math

from timechat.planning.facts import Facts, Numbers, given
from timechat.recipe import Lora
from timechat.records import Derived

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


def plan_learning(numbers: Numbers, facts: Facts) -> None:
    """How many steps of what size, at which rates, and when they are validated and saved."""
    _steps(numbers, facts)
    _learning_rate(numbers, facts)
    _word_dropout(numbers, facts)
    _adapt(numbers, facts)
    _validations(numbers, facts)


def plan_lengths(numbers: Numbers, facts: Facts) -> None:
    """The longest row that is trained, and the longest answer that is waited for."""
    recipe, rows = facts.recipe, facts.rows
    power = 2 ** math.ceil(math.log2(max(2, rows.longest)))
    numbers["max_length"] = given(
        recipe.train.max_length,
        min(facts.shape.window, max(64, power), 2048),
        "the longest row, at most 2,048 and the model's window",
    )
    answer = min(256, max(16, math.ceil(1.5 * rows.reference_tokens) + 8))
    numbers["max_new_tokens"] = given(
        recipe.evaluate.max_new_tokens, answer, "1.5 × the longest usual reference answer + 8"
    )


def _steps(numbers: Numbers, facts: Facts) -> None:
    train, num_rows = facts.recipe.train, facts.rows.num_train
    (large, most), (many, more), (usual, rows_usual), (_, fewest) = STEP_ROWS
    numbers["batch_rows"] = given(
        train.batch_rows,
        next(size for least, size in STEP_ROWS if num_rows >= least),
        f"{rows_usual} rows a step: LoRA learns best in small steps; {fewest} below {usual} rows, "
        f"{more} from {many:,} and {most} from {large:,}, where steps are many and larger ones "
        "faster",
    )
    numbers["epochs"] = given(
        train.epochs,
        min(10.0, max(1.0, round(ROWS_SEEN / max(1, num_rows), 1))),
        f"{ROWS_SEEN:,} rows seen, each between 1 and 10 times (LAB.md, the mixture)",
    )
    steps = math.ceil(num_rows * numbers["epochs"].value / numbers["batch_rows"].value)
    numbers["steps"] = Derived(max(1, steps), "rows × epochs / rows a step, rounded up")
    numbers["warmup_steps"] = Derived(
        max(1, round(train.warmup * max(1, steps))), f"{train.warmup:.0%} of the steps"
    )


def _learning_rate(numbers: Numbers, facts: Facts) -> None:
    is_lora = isinstance(facts.recipe.adapt, Lora)
    base = BASE_RATE if is_lora else BASE_RATE / LORA_RATE_FACTOR
    numbers["learning_rate"] = given(
        facts.recipe.train.learning_rate,
        float(f"{base * min(1.0, BASE_HIDDEN / facts.shape.hidden):.1e}"),
        f"{base:g} up to hidden size {BASE_HIDDEN} "
        + ("(LAB.md)" if is_lora else "(a tenth of what LoRA takes)")
        + ", beyond it as 1 / hidden size",
    )


def _word_dropout(numbers: Numbers, facts: Facts) -> None:
    words, has_trunk = facts.rows.question_words, bool(facts.shape.lowest)
    is_seen_again = numbers["epochs"].value >= 2
    numbers["word_dropout"] = given(
        facts.recipe.train.word_dropout,
        0.2 if words <= SHORT_QUESTION and is_seen_again and not has_trunk else 0.0,
        "0: what the frozen layers put out is kept, so rows must stay as they are"
        if has_trunk
        else f"0.2 where a row is seen twice or more and a user turn has at most {SHORT_QUESTION} "
        f"words on average (here {words:.0f}), else 0: answers should not hang on one word "
        "(LAB.md)",
    )


def _adapt(numbers: Numbers, facts: Facts) -> None:
    adapt = facts.recipe.adapt
    if isinstance(adapt, Lora):
        rule = "2 × rank, so that rank is only capacity"
        numbers["alpha"] = given(adapt.alpha, 2.0 * adapt.rank, rule)
    if adapt.activation is not None:
        numbers["activation"] = Derived(
            adapt.activation,
            f"as the recipe says, where the base has {facts.shape.activation}: every layer "
            "computes something else than it learned, so expect to lose general ability; plain "
            "PEFT does not know of it (compare with a run without it)",
        )


def _validations(numbers: Numbers, facts: Facts) -> None:
    train, steps = facts.recipe.train, numbers["steps"].value
    numbers["validations"] = given(
        train.validations,
        min(8, max(1, steps // 10)),
        "one every 10 steps, at most 8 over the run",
    )
    every = max(1, math.ceil(steps / numbers["validations"].value))
    numbers["validate_every"] = Derived(every, "steps / validations, rounded up")
    numbers["checkpoint_every"] = given(train.checkpoint_every, every, "at every validation")
