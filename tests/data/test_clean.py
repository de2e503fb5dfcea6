"""Cleaning steps, one claim each."""

import pytest

from timechat.conversation import Conversation, Message, content_hash
from timechat.data.cleaning.steps import cleaning_steps
from timechat.data.cleaning.turns import (
    Duplicates,
    RepeatedIds,
    check_empty,
    check_roles,
    check_targets,
    strip_whitespace,
)
from timechat.data.verdicts import Drop, Edit, Keep, clean


def talk(*turns: tuple[str, str], id: str = "", weight: float = 1.0) -> Conversation:
    messages = tuple(Message(role, text, weight) for role, text in turns)  # type: ignore[arg-type]
    return Conversation(id or content_hash(messages), messages, "f", 1)


def ask(question: str, answer: str, **more: str) -> Conversation:
    return talk(("user", question), ("assistant", answer), **more)


def test_only_outer_whitespace_is_an_edit_and_the_hash_follows() -> None:
    assert strip_whitespace(ask("a  b", "c")) == Keep()
    verdict = strip_whitespace(ask("a", " c\n"))
    assert isinstance(verdict, Edit)
    assert verdict.detail == "message 2"
    assert verdict.conversation.id == ask("a", "c").id


def test_an_id_that_the_user_gave_survives_an_edit() -> None:
    verdict = strip_whitespace(ask("a", " c", id="mine"))
    assert isinstance(verdict, Edit)
    assert verdict.conversation.id == "mine"


@pytest.mark.parametrize(
    ("roles", "reason"),
    [
        ("ua", ""),
        ("suaua", ""),
        ("a", "no_user_turn"),
        ("s", "no_user_turn"),
        ("u", "no_answer"),
        ("uau", "no_answer"),
        ("uua", "roles_out_of_order"),
        ("aua", "roles_out_of_order"),
        ("usa", "roles_out_of_order"),
        ("ssua", "roles_out_of_order"),
        ("uaa", "roles_out_of_order"),
    ],
)
def test_roles_alternate_and_end_with_the_assistant(roles: str, reason: str) -> None:
    names = {"s": "system", "u": "user", "a": "assistant"}
    verdict = check_roles(talk(*((names[r], "x") for r in roles)))
    assert (verdict.reason if isinstance(verdict, Drop) else "") == reason


def test_empty_turns_are_dropped_by_role() -> None:
    assert check_empty(ask("q", " ")) == Drop("empty_answer", "message 2")
    assert check_empty(ask("", "a")) == Drop("empty_question", "message 1")
    assert check_empty(talk(("system", ""), ("user", "q"), ("assistant", "a"))) == Keep()


def test_a_row_without_any_weight_has_no_target() -> None:
    assert isinstance(check_targets(talk(("user", "q"), ("assistant", "a"), weight=0)), Drop)


def test_duplicates_are_found_through_spacing_and_composition_but_not_case() -> None:
    step = Duplicates()
    assert step(ask("caf\u00e9 now", "x")) == Keep()
    assert isinstance(step(ask("cafe\u0301  now", "x")), Drop)
    assert step(ask("CAFÉ now", "x")) == Keep()
    assert step(ask("café now", "y")) == Keep()


def test_a_row_that_brings_the_common_system_prompt_equals_one_that_gets_it() -> None:
    step = Duplicates("Be kind.")
    assert step(ask("q", "a")) == Keep()
    own = talk(("system", "Be kind."), ("user", "q"), ("assistant", "a"))
    assert isinstance(step(own), Drop)


def test_a_repeated_id_is_replaced_and_reported() -> None:
    step = RepeatedIds()
    assert step(ask("q", "a", id="1")) == Keep()
    verdict = step(ask("r", "b", id="1"))
    assert isinstance(verdict, Edit)
    assert (verdict.conversation.id, verdict.reason) == (ask("r", "b").id, "repeated_id")


def test_cleaning_ends_at_the_first_drop_and_collects_edits() -> None:
    steps = cleaning_steps()
    kept = clean(ask(" q", "a"), steps)
    assert not isinstance(kept, Drop)
    assert [edit.reason for edit in kept[1]] == ["outer_whitespace"]
    assert clean(ask("q", " a"), steps) == Drop("duplicate", "of f:1")
    assert clean(ask("q", "  "), steps) == Drop("empty_answer", "message 2")
