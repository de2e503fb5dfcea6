"""What a plan is worked out from: the recipe, and what was measured of rows, model and machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from timechat.recipe import Recipe
from timechat.records import Derived

Numbers = dict[str, Derived]

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
    # Of a number in the format that the run computes in.
    number_bytes: int
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


@dataclass(frozen=True, slots=True)
class Facts:
    """All that a plan is worked out from."""

    recipe: Recipe
    rows: Rows
    shape: Shape
    machine: Machine


def given(value: Any, otherwise: Any, rule: str) -> Derived:
    """The recipe's own value, or the derived one with its rule where it says `auto`."""
    return Derived(otherwise, rule) if value == "auto" else Derived(value, "as the recipe says")
