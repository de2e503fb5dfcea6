"""What each step of a lesson holds: first the corrections are learned, then the rest is rehearsed.

Learning shifts a small model's other answers, however they are held: of what it knew a quarter is
answered otherwise afterwards. Rows of the run, trained on their own references beside a few
corrections, bring that back, and what was corrected stays (LAB.md, learning from corrections). In
both parts general text is held to what the model in use says of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random

from timechat.conversation import Conversation, Message
from timechat.data.augment import drop_words
from timechat.data.pack import Batch, Example, encode, order
from timechat.stages.learning.corrections import Correction
from timechat.stages.training.batches import cut_step, replay_batches
from timechat.stages.training.context import Context

# Rows of corrections and of the run in one step: while it learns, and while it rehearses.
LEARNING, REHEARSING = (8, 4), (4, 12)
# How often each correction is seen while it is learned, and the steps that even one takes.
VIEWS, FEWEST_STEPS = 16, 12
# Steps of rehearsal for one of learning.
REHEARSALS = 2.4


@dataclass(frozen=True, slots=True)
class Lengths:
    """Steps of the two parts of a lesson."""

    learning: int
    rehearsing: int

    @classmethod
    def of(cls, corrections: int) -> Lengths:
        learning = max(FEWEST_STEPS, math.ceil(corrections * VIEWS / LEARNING[0]))
        return cls(learning, round(REHEARSALS * learning))

    @property
    def steps(self) -> int:
        return self.learning + self.rehearsing

    @property
    def views(self) -> int:
        """Rows of corrections over all steps."""
        return self.learning * LEARNING[0] + self.rehearsing * REHEARSING[0]


def correction_row(
    correction: Correction, number: int, prompt: Sequence[Message], system: str
) -> Conversation:
    """One wording of a correction as a row; what stood before in the conversation is context, and
    earlier answers in it are not learned again."""
    messages = (*prompt, Message("assistant", correction.answer))
    quiet = tuple(replace(m, weight=0.0) if m.role == "assistant" else m for m in messages[:-1])
    row = Conversation(f"{correction.id}-{number}", (*quiet, messages[-1]), source="corrections")
    return replace(row, group=correction.id).with_system(system)


def plan_lesson(
    context: Context, lengths: Lengths, own: Sequence[Conversation], seed: int
) -> list[Callable[[], tuple[Batch, ...]]]:
    """What each step trains on, built when its turn comes: `context` holds the corrections' rows,
    `own` those of the run."""
    return _Curriculum(context, lengths, own, seed).steps()


class _Curriculum:
    def __init__(
        self, context: Context, lengths: Lengths, own: Sequence[Conversation], seed: int
    ) -> None:
        self.context, self.lengths, self.seed = context, lengths, seed
        self.own = list(own)
        Random(seed).shuffle(self.own)
        self.general = replay_batches(context)
        [self.turns] = order(len(context.train), lengths.views, 1, seed)

    def steps(self) -> list[Callable[[], tuple[Batch, ...]]]:
        return [lambda number=number: self._step(number) for number in range(self.lengths.steps)]

    def _step(self, number: int) -> tuple[Batch, ...]:
        learned = min(number, self.lengths.learning)
        rehearsed = number - learned
        is_learning = number < self.lengths.learning
        corrections, rows = LEARNING if is_learning else REHEARSING
        first, first_own = (
            learned * a + rehearsed * b for a, b in zip(LEARNING, REHEARSING, strict=True)
        )
        taught = [self.context.train[row] for row in self.turns[first : first + corrections]]
        own = [self.own[(first_own + i) % len(self.own)] for i in range(min(rows, len(self.own)))]
        general = self.general[number % len(self.general)] if self.general else []
        # Drawn from the step's number, so that a resumed lesson leaves the same words out.
        chance = Random(f"{self.seed}-{number}")
        if not is_learning:
            return self._cut(self._thin([*taught, *own], chance), general)
        # Every second one in fewer words: what is asked otherwise should stay as it is, too.
        held = [*self._encode(own[::2]), *self._thin(own[1::2], chance)]
        return self._cut(self._thin(taught, chance), [*held, *general])

    def _cut(self, rows: list[Example], held: list[Example]) -> tuple[Batch, ...]:
        return cut_step(rows, held, self.context.plan["micro_rows"])

    def _thin(self, rows: Sequence[Conversation], chance: Random) -> list[Example]:
        share = self.context.plan["word_dropout"]
        return self._encode([drop_words(row, share, chance) for row in rows])

    def _encode(self, rows: Sequence[Conversation]) -> list[Example]:
        examples = [encode(row, self.context.loaded.renderer) for row in rows]
        return [example for example in examples if example.num_targets]
