"""What there is to judge, and what may be said of it.

Two tasks: `judge` one answer (or label) or correct it, and `choose` the better of two and tick in
what it is better. Who gets which item, and where it is kept, is for `ledger.annotation`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

from timechat.conversation import Message
from timechat.errors import LedgerError, nearest

Task = Literal["judge", "choose"]
VERDICTS: dict[str, tuple[str, ...]] = {
    "judge": ("right", "corrected", "wrong", "skip"),
    "choose": ("first", "second", "tie", "neither", "skip"),
}
TICKS = ("clearer", "more accurate", "more relevant", "shorter")
"""In what the better of two answers is better."""
MAX_TEXT = 100_000


@dataclass(frozen=True, slots=True)
class Answer:
    """A text to judge, and whose it is; the origin is never shown to who judges."""

    text: str
    origin: str = ""


@dataclass(frozen=True, slots=True)
class Suggestion:
    """What a model would answer."""

    model: str
    value: str


@dataclass(frozen=True, slots=True)
class Item:
    """One thing to judge. `prompt` are the messages before the answer.

    `judge` has one answer, or none where it is still to be written; `choose` has two. `id` is 0
    until the item is in a queue. `said` brings judgements along that were made elsewhere.
    """

    task: Task
    prompt: tuple[Message, ...]
    answers: tuple[Answer, ...]
    row_id: str = ""
    group: str = ""
    source: str = ""
    line: int = 0
    id: int = 0
    suggestions: tuple[Suggestion, ...] = ()
    said: tuple[Judgement, ...] = ()

    @property
    def cluster(self) -> str:
        """The unit of statistics, as in `Conversation`: the group, or the item itself."""
        return self.group or f"item {self.id}"

    @property
    def fingerprint(self) -> str:
        content: list[Any] = [self.task, [[m.role, m.content] for m in self.prompt]]
        content.append([a.text for a in self.answers])
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def shown_order(self, annotator: str) -> tuple[int, ...]:
        """The answers' order on this annotator's screen: a fair coin that falls the same again."""
        coin = hashlib.sha256(f"{self.fingerprint}/{annotator}".encode("utf-8", "replace")).digest()
        order = tuple(range(len(self.answers)))
        return order[::-1] if coin[0] & 1 else order


@dataclass(frozen=True, slots=True)
class Judgement:
    """What one person said of one item, and when. `suggested` names the model in view.

    `ticks` are those of TICKS that the better answer got; None where they were not asked for.
    """

    item: int
    annotator: str
    verdict: str
    value: str | None = None
    note: str = ""
    suggested: str | None = None
    seconds: float | None = None
    created_ms: int = 0
    ticks: tuple[str, ...] | None = None


def check_name(annotator: str) -> str:
    """The annotator's name, stripped. Raises LedgerError for an empty or very long one."""
    name = annotator.strip()
    if not name or len(name) > 200 or not name.isprintable():
        raise LedgerError(
            f"an annotator's name has 1 to 200 printable characters, not {annotator!r}"
        )
    return name


def check_said(judgement: Judgement, item: Item, labels: Collection[str]) -> None:
    """Raises LedgerError for a verdict that the item's task does not know, or a value, label or
    tick that does not go with it."""
    known = VERDICTS[item.task]
    if judgement.verdict not in known:
        raise LedgerError(
            f"item {item.id} is to {item.task}, and {judgement.verdict!r} is no verdict of "
            f"that: {nearest(judgement.verdict, known)}"
        )
    if judgement.verdict in ("right", "wrong") and not item.answers:
        raise LedgerError(f"item {item.id} has no answer yet: correct it or skip it")
    _check_value(judgement, labels)
    _check_ticks(judgement)


def _check_value(judgement: Judgement, labels: Collection[str]) -> None:
    needs_value = judgement.verdict == "corrected"
    if needs_value != (judgement.value is not None):
        raise LedgerError(
            f"verdict {judgement.verdict!r} {'needs' if needs_value else 'takes no'} value"
        )
    if judgement.value is None:
        return
    if not judgement.value.strip() or len(judgement.value) > MAX_TEXT:
        raise LedgerError(
            f"a corrected answer has 1 to {MAX_TEXT:,} characters, not {len(judgement.value):,}"
        )
    if labels and judgement.value not in labels:
        raise LedgerError(
            f"{judgement.value!r} is none of this queue's labels: "
            f"{nearest(judgement.value, labels)}"
        )


def _check_ticks(judgement: Judgement) -> None:
    ticks = judgement.ticks or ()
    for tick in ticks:
        if tick not in TICKS:
            raise LedgerError(f"{tick!r} is nothing to tick: {nearest(tick, TICKS)}")
    if len(set(ticks)) < len(ticks):
        raise LedgerError(f"ticked twice: {', '.join(ticks)}")
    if ticks and judgement.verdict not in ("first", "second"):
        raise LedgerError(
            f"ticks say in what the better answer is better; {judgement.verdict!r} names none"
        )
