"""Cleaning: small steps from a conversation to a verdict, `Keep`, `Edit` or `Drop`.

Order matters and is that of `cleaning_steps`. Reading files is `data.sources`' work; counting and
writing down what was touched is `stages.prepare`'s.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from timechat.conversation import Conversation, content_hash


@dataclass(frozen=True, slots=True)
class Keep:
    """The conversation passes as it is."""


@dataclass(frozen=True, slots=True)
class Edit:
    """The conversation goes on changed."""

    conversation: Conversation
    reason: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Drop:
    """The conversation goes no further."""

    reason: str
    detail: str = ""


Verdict = Keep | Edit | Drop
Step = Callable[[Conversation], Verdict]

# Drops that say nothing bad about a file, so `max_dropped` does not count them.
HARMLESS = frozenset({"duplicate", "blank_line", "marked_bad"})


def cleaning_steps(system: str = "") -> tuple[Step, ...]:
    """The steps of one split, in order; fresh ones each time, as the last two remember rows.

    `system` is the prompt that rows without one are going to get: it counts as theirs when rows
    are compared.
    """
    return (
        strip_whitespace,
        check_roles,
        check_empty,
        check_targets,
        Duplicates(system),
        RepeatedIds(),
    )


def text_cleaning_steps() -> tuple[Step, ...]:
    """The steps for passages of text, which have no roles; in order, fresh ones each time."""
    return (check_text, Duplicates(), RepeatedIds())


def clean(row: Conversation, steps: Sequence[Step]) -> tuple[Conversation, list[Edit]] | Drop:
    """Run `row` through the steps: what is left with its edits, or the first drop."""
    edits: list[Edit] = []
    for step in steps:
        verdict = step(row)
        if isinstance(verdict, Drop):
            return verdict
        if isinstance(verdict, Edit):
            edits.append(verdict)
            row = verdict.conversation
    return row, edits


def strip_whitespace(row: Conversation) -> Verdict:
    """Outer whitespace of contents goes: a template adds its own."""
    messages = tuple(replace(m, content=m.content.strip()) for m in row.messages)
    changed = [i for i, m in enumerate(messages, 1) if m.content != row.messages[i - 1].content]
    if not changed:
        return Keep()
    # An id that was the content's hash stays the content's hash; one the user gave stays his.
    own = row.id == content_hash(row.messages)
    edited = row.with_messages(messages)
    if own:
        edited = replace(edited, id=content_hash(messages))
    return Edit(edited, "outer_whitespace", "message " + ", ".join(map(str, changed)))


def check_roles(row: Conversation) -> Verdict:
    """An optional system turn, then user and assistant in turns, the assistant last."""
    roles = [m.role for m in row.messages]
    if "user" not in roles:
        return Drop("no_user_turn", _outline(roles))
    if roles[-1] != "assistant":
        return Drop("no_answer", f"the last turn is {roles[-1]!r}; it must be 'assistant'")
    turns = roles[1:] if roles[0] == "system" else roles
    expected = ["user", "assistant"] * (len(turns) // 2)
    if turns != expected:
        return Drop("roles_out_of_order", _outline(roles))
    return Keep()


def check_empty(row: Conversation) -> Verdict:
    """No empty questions and no empty answers; whitespace is empty."""
    for number, message in enumerate(row.messages, 1):
        if message.role != "system" and not message.content.strip():
            reason = "empty_answer" if message.role == "assistant" else "empty_question"
            return Drop(reason, f"message {number}")
    return Keep()


def check_text(row: Conversation) -> Verdict:
    """Text that is more than blanks."""
    return Keep() if row.messages[-1].content.strip() else Drop("empty_text")


def check_targets(row: Conversation) -> Verdict:
    """At least one assistant turn is there to be learnt."""
    if any(m.weight > 0 for m in row.messages if m.role == "assistant"):
        return Keep()
    return Drop("no_target", "every assistant turn has weight 0")


class Duplicates:
    """Drops a row that says what an earlier one said."""

    def __init__(self, system: str = "") -> None:
        self._system = system
        self._first: dict[str, Conversation] = {}

    def __call__(self, row: Conversation) -> Verdict:
        first = self._first.setdefault(fingerprint(row.with_system(self._system)), row)
        if first is row:
            return Keep()
        return Drop("duplicate", f"of {first.source}:{first.line}")


class RepeatedIds:
    """Gives a row whose id an earlier, different row has already its content's hash."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def __call__(self, row: Conversation) -> Verdict:
        if row.id not in self._seen:
            self._seen.add(row.id)
            return Keep()
        fresh = content_hash(row.messages)
        self._seen.add(fresh)
        return Edit(replace(row, id=fresh), "repeated_id", f"an earlier row has {row.id!r}")


def fingerprint(row: Conversation) -> str:
    """A hash of roles and contents that does not see how they are spaced or composed."""
    said = [
        [m.role, " ".join(unicodedata.normalize("NFC", m.content).split())] for m in row.messages
    ]
    if row.rejected:
        # The same answer preferred to another one says something else.
        said.append(["rejected", row.rejected])
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


def _outline(roles: Sequence[str]) -> str:
    shown = ", ".join(roles[:8]) + (", …" if len(roles) > 8 else "")
    return f"roles are {shown}; allowed: an optional system, then user and assistant in turns"
