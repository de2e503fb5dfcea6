"""Which cleaning steps are taken, in which order, as the recipe's `data.clean` says.

Each is a row's own business and sees one row after another. What needs all rows at once, near
duplicates, label noise and balance, comes after them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from timechat.conversation import Conversation, Message
from timechat.data.cleaning.damage import find_damage, find_residue, repair, strip_residue
from timechat.data.cleaning.language import UNKNOWN, check_languages, language_of
from timechat.data.cleaning.personal import count_personal, replace_personal
from timechat.data.cleaning.turns import (
    Duplicates,
    RepeatedIds,
    check_empty,
    check_repeats,
    check_roles,
    check_targets,
    check_text,
    mend_roles,
    reworded,
    strip_whitespace,
)
from timechat.data.verdicts import Drop, Edit, Flag, Keep, Step, Verdict
from timechat.errors import DataError
from timechat.recipe import Clean

# The tokens of a conversation under the chosen model's template.
Count = Callable[[Sequence[Message]], int]


def cleaning_steps(
    rules: Clean | None = None, system: str = "", count: Count | None = None, texts: bool = False
) -> tuple[Step, ...]:
    """The steps of one split, in order; fresh ones each time, as the last two remember rows.

    `system` is the prompt that rows without one are going to get: it counts as theirs when rows
    are compared or measured. `texts` are passages, which have no roles. Raises DataError.
    """
    rules = rules or Clean()
    check_languages(rules.languages)
    turns = (check_text,) if texts else tuple(_turn_steps(rules))
    steps: list[Step] = [*turns]
    if rules.damage != "off":
        steps.append(lambda row: _judge_damage(row, rules.damage))
    if rules.personal != "off":
        steps.append(lambda row: _judge_personal(row, rules.personal))
    if rules.language != "off" or rules.languages:
        steps.append(lambda row: _judge_language(row, rules.languages))
    if rules.max_tokens is not None:
        if count is None:
            raise DataError("data.clean.max_tokens needs a model whose tokenizer counts: name one")
        steps.append(_Length(rules.max_tokens, rules.too_long, count, system))
    if rules.duplicates == "drop":
        steps.append(Duplicates(system))
    return (*steps, RepeatedIds())


def _turn_steps(rules: Clean) -> list[Step]:
    steps: list[Step] = []
    if rules.whitespace == "strip":
        steps.append(strip_whitespace)
    if rules.repeated_turns != "off":
        steps.append(_as_told(check_repeats, rules.repeated_turns))
    if rules.roles == "mend":
        steps.append(mend_roles)
    steps.append(check_roles)
    if rules.empty == "drop":
        steps.append(check_empty)
    steps.append(check_targets)
    if rules.residue != "off":
        steps.append(lambda row: _judge_residue(row, rules.residue))
    return steps


def _as_told(step: Step, action: str) -> Step:
    """A step whose drops are only noted, when the action is `report`."""

    def judge(row: Conversation) -> Verdict:
        verdict = step(row)
        if action == "report" and isinstance(verdict, Drop):
            return Flag(verdict.reason, verdict.detail)
        return verdict

    return judge


def _judge_residue(row: Conversation, action: str) -> Verdict:
    for number, message in enumerate(row.messages, 1):
        if message.role != "assistant" or not (mark := find_residue(message.content)):
            continue
        detail = f"message {number} holds {mark[:40]!r}"
        if action == "report":
            return Flag("template_residue", detail)
        mended = strip_residue(row)
        if action == "drop" or not mended.messages[number - 1].content:
            return Drop("template_residue", detail)
        return Edit(reworded(row, mended.messages), "template_residue", detail)
    return Keep()


def _judge_damage(row: Conversation, action: str) -> Verdict:
    for number, message in enumerate(row.messages, 1):
        if not (found := find_damage(message.content)):
            continue
        detail = f"message {number} {found}"
        if action == "report":
            return Flag("damaged_text", detail)
        mended = repair(row)
        still = any(find_damage(m.content) for m in mended.messages)
        if action == "drop_lost" and not still:
            return Flag("damaged_text", detail)
        if still or action != "repair":
            return Drop("damaged_text", detail)
        return Edit(reworded(row, mended.messages), "damaged_text", detail)
    return Keep()


def _judge_personal(row: Conversation, action: str) -> Verdict:
    if action == "replace":
        replaced, counts = replace_personal(row)
        if not counts:
            return Keep()
        edited = replace(reworded(row, replaced.messages), rejected=replaced.rejected)
        return Edit(edited, "personal_data", _listed(counts))
    counts = count_personal(row)
    if not counts:
        return Keep()
    verdict = Drop if action == "drop" else Flag
    return verdict("personal_data", _listed(counts))


def _judge_language(row: Conversation, wanted: tuple[str, ...]) -> Verdict:
    found = language_of(row)
    if not wanted or found in (*wanted, UNKNOWN):
        return Flag("language", found)
    return Drop("language", f"{found}; data.clean.languages keeps {', '.join(wanted)}")


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))


class _Length:
    """Rows over a number of tokens: dropped, shortened by whole turns from the end, or an error."""

    def __init__(self, limit: int, action: str, count: Count, system: str) -> None:
        self._limit = limit
        self._action = action
        self._count = count
        self._system = system

    def __call__(self, row: Conversation) -> Verdict:
        size = self._size(row)
        if size <= self._limit:
            return Keep()
        detail = f"{size} tokens, data.clean.max_tokens is {self._limit}"
        if self._action == "refuse":
            raise DataError(
                f"{row.source} line {row.line} has {detail}: raise it, or set data.clean.too_long "
                "to drop or shorten"
            )
        shorter = self._shortened(row) if self._action == "shorten" else None
        if shorter is None:
            return Drop("too_long", detail)
        left = f"{detail}; {len(row.messages) - len(shorter.messages)} last turns cut"
        return Edit(reworded(row, shorter.messages), "too_long", left, "shortened")

    def _shortened(self, row: Conversation) -> Conversation | None:
        """What it begins with, as far as fits; nothing when its first exchange does not."""
        for end in range(len(row.messages) - 2, 1, -2):
            shorter = row.with_messages(row.messages[:end])
            targets = any(m.weight > 0 for m in shorter.messages if m.role == "assistant")
            if targets and self._size(shorter) <= self._limit:
                return shorter
        return None

    def _size(self, row: Conversation) -> int:
        return self._count(row.with_system(self._system).messages)
