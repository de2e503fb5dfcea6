"""The cleaning steps that need nothing but a row's turns: their order, repeats and blanks.

Which steps are taken, and in which order, is `steps`'.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from timechat.conversation import Conversation, Message, content_hash
from timechat.data.verdicts import Drop, Edit, Keep, Verdict


def strip_whitespace(row: Conversation) -> Verdict:
    """Outer whitespace of contents goes: a template adds its own."""
    messages = tuple(replace(m, content=m.content.strip()) for m in row.messages)
    changed = [i for i, m in enumerate(messages, 1) if m.content != row.messages[i - 1].content]
    if not changed:
        return Keep()
    detail = "message " + ", ".join(map(str, changed))
    return Edit(reworded(row, messages), "outer_whitespace", detail)


def reworded(row: Conversation, messages: tuple[Message, ...]) -> Conversation:
    """`row` saying `messages`. An id that was the content's hash stays the content's hash; one
    that the user gave stays the user's."""
    if row.id != content_hash(row.messages):
        return row.with_messages(messages)
    return replace(row.with_messages(messages), id=content_hash(messages))


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


def mend_roles(row: Conversation) -> Verdict:
    """Turns of one role joined, an opening answer and what no answer follows cut."""
    messages: list[Message] = []
    for message in row.messages:
        if messages and messages[-1].role == message.role:
            last = messages[-1]
            weight = min(last.weight, message.weight)
            messages[-1] = Message(last.role, f"{last.content}\n{message.content}", weight)
        else:
            messages.append(message)
    system = messages[:1] if messages and messages[0].role == "system" else []
    turns = [m for m in messages[len(system) :] if m.role != "system"]
    while turns and turns[0].role == "assistant":
        turns.pop(0)
    while turns and turns[-1].role == "user":
        turns.pop()
    mended = (*system, *turns)
    if mended == row.messages:
        return Keep()
    was, now = _outline_of(row.messages), _outline_of(mended)
    return Edit(reworded(row, mended), "roles_mended", f"roles were {was}, are {now}")


def check_repeats(row: Conversation) -> Verdict:
    """No exchange said twice in a row, and no turn stuttered by its speaker."""
    turns = [m for m in row.messages if m.role != "system"]
    for number, (one, other) in enumerate(pairwise(turns), 2):
        if one.role == other.role and one.content == other.content:
            return Drop("repeated_turn", f"turn {number} is the one before it again")
    for number in range(len(turns) - 3):
        now, later = turns[number : number + 2], turns[number + 2 : number + 4]
        if [(m.role, m.content) for m in now] == [(m.role, m.content) for m in later]:
            return Drop("repeated_turn", f"turns {number + 3} and {number + 4} are said again")
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
        self._files: dict[str, int] = {}
        # Hash: where the row was, as one number, since there may be millions of them.
        self._first: dict[int, int] = {}

    def __call__(self, row: Conversation) -> Verdict:
        mark = fingerprint(row.with_system(self._system))
        file = self._files.setdefault(row.source, len(self._files))
        place = file << 40 | row.line
        first = self._first.get(mark)
        if first is None:
            self._first[mark] = place
            return Keep()
        source = list(self._files)[first >> 40]
        return Drop("duplicate", f"of {source}:{first & (1 << 40) - 1}")


class RepeatedIds:
    """Gives a row whose id an earlier, different row has already its content's hash."""

    def __init__(self) -> None:
        self._seen: set[int] = set()

    def __call__(self, row: Conversation) -> Verdict:
        if hash(row.id) not in self._seen:
            self._seen.add(hash(row.id))
            return Keep()
        fresh = content_hash(row.messages)
        self._seen.add(hash(fresh))
        return Edit(replace(row, id=fresh), "repeated_id", f"an earlier row has {row.id!r}")


def fingerprint(row: Conversation) -> int:
    """A 128-bit hash of roles and contents that does not see how they are spaced or composed."""
    said = [
        [m.role, " ".join(unicodedata.normalize("NFC", m.content).split())] for m in row.messages
    ]
    if row.rejected:
        # The same answer preferred to another one says something else.
        said.append(["rejected", row.rejected])
    return int.from_bytes(hashlib.sha256(json.dumps(said).encode()).digest()[:16])


def _outline_of(messages: Sequence[Message]) -> str:
    return ", ".join(m.role for m in messages[:8]) + (", …" if len(messages) > 8 else "")


def _outline(roles: Sequence[str]) -> str:
    shown = ", ".join(roles[:8]) + (", …" if len(roles) > 8 else "")
    return f"roles are {shown}; allowed: an optional system, then user and assistant in turns"
