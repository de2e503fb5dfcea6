"""What a step says of a conversation, `Keep`, `Flag`, `Edit` or `Drop`, and one step after another.

The steps themselves are `data.cleaning`'s; counting and writing down what was touched is
`stages.preparing`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from timechat.conversation import Conversation


@dataclass(frozen=True, slots=True)
class Keep:
    """The conversation passes as it is."""


@dataclass(frozen=True, slots=True)
class Flag:
    """The conversation passes as it is, and something is noted about it."""

    reason: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Edit:
    """The conversation goes on changed."""

    conversation: Conversation
    reason: str
    detail: str = ""
    action: Literal["edited", "shortened"] = "edited"


@dataclass(frozen=True, slots=True)
class Drop:
    """The conversation goes no further."""

    reason: str
    detail: str = ""


Verdict = Keep | Flag | Edit | Drop
Step = Callable[[Conversation], Verdict]

# Drops that say nothing bad about a file, so `max_dropped` does not count them.
HARMLESS = frozenset(
    {"duplicate", "near_duplicate", "blank_line", "marked_bad", "balanced", "overlap"}
)


def clean(
    row: Conversation, steps: Sequence[Step]
) -> tuple[Conversation, list[Edit], list[Flag]] | Drop:
    """Run `row` through the steps: what is left with its edits and flags, or the first drop."""
    edits: list[Edit] = []
    flags: list[Flag] = []
    for step in steps:
        verdict = step(row)
        if isinstance(verdict, Drop):
            return verdict
        if isinstance(verdict, Edit):
            edits.append(verdict)
            row = verdict.conversation
        elif isinstance(verdict, Flag):
            flags.append(verdict)
    return row, edits, flags
