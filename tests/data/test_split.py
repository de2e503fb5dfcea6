"""The split: no leak, no dependence on order, and never too little to train on."""

import random
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from timechat.conversation import Conversation, Message, content_hash
from timechat.data.cleaning.turns import fingerprint
from timechat.data.splitting.links import Twin, relate
from timechat.data.splitting.near import Askings, question_key
from timechat.data.splitting.split import assign
from timechat.errors import DataError

Rows = tuple[Conversation, ...]


@dataclass(frozen=True)
class Parts:
    train: Rows
    validation: Rows
    test: Rows


def split(rows: Rows, validation: Rows | None, test: Rows | None, seed: int) -> Parts:
    """As `prepare` does it, without files."""
    askings = Askings()
    for number, row in enumerate(rows):
        askings.add(row, number)
    first: dict[str, int] = {}
    groups = [(first.setdefault(r.group, i), i) for i, r in enumerate(rows) if r.group]
    clusters = relate(len(rows), groups, askings, near=True, keep=False).clusters
    askings.close()
    marks = np.array([fingerprint(row) & (1 << 64) - 1 for row in rows], np.uint64)
    sides = assign(clusters, marks, None, validation is None, test is None, seed)
    parts = [tuple(r for r, s in zip(rows, sides, strict=True) if s == k) for k in range(3)]
    return Parts(
        parts[0],
        parts[1] if validation is None else validation,
        parts[2] if test is None else test,
    )


def twins(held_out: Rows, train: Rows) -> list[Twin]:
    askings = Askings()
    for number, row in enumerate(train):
        askings.add(row, number)
    for number, row in enumerate(held_out):
        askings.add(row, number, 2)
    found = relate(len(train), [], askings, near=True, keep=False).twins
    askings.close()
    return found


def count_overlap(held_out: Rows, train: Rows) -> int:
    return len({twin.held_out for twin in twins(held_out, train)})


def ask(question: str, answer: str = "a", group: str = "") -> Conversation:
    messages = (Message("user", question), Message("assistant", answer))
    return Conversation(content_hash(messages), messages, group=group)


def many(count: int) -> Rows:
    return tuple(ask(f"question {i}") for i in range(count))


def ids(rows: Rows) -> set[str]:
    return {row.id for row in rows}


@pytest.mark.parametrize(
    ("rows", "validation", "test"),
    [(12, 1, 5), (40, 3, 17), (100, 4, 20), (1000, 40, 100), (10_000, 256, 400)],
)
def test_sizes_follow_the_shares_and_leave_half_for_training(
    rows: int, validation: int, test: int
) -> None:
    parts = split(many(rows), None, None, 0)
    assert (len(parts.validation), len(parts.test)) == (validation, test)
    assert len(parts.train) == rows - validation - test >= rows / 2


def test_the_sides_do_not_depend_on_the_order_of_the_file() -> None:
    rows = list(many(200)) + [ask(f"other {i}", group=f"g{i % 9}") for i in range(60)]
    shuffled = random.Random(1).sample(rows, len(rows))
    one, other = split(tuple(rows), None, None, 3), split(tuple(shuffled), None, None, 3)
    assert ids(one.test) == ids(other.test)
    assert ids(one.validation) == ids(other.validation)
    assert ids(split(tuple(rows), None, None, 4).test) != ids(one.test)


@given(
    st.lists(
        st.tuples(st.integers(0, 40), st.integers(0, 9), st.sampled_from(["", "", "g", "h", "i"])),
        min_size=12,
        max_size=60,
    ),
    st.integers(0, 5),
)
def test_nothing_is_lost_and_nothing_leaks(rows: list[tuple[int, int, str]], seed: int) -> None:
    every = tuple({(q, a): ask(f"Q {q}?", f"a{a}", g) for q, a, g in rows}.values())
    try:
        parts = split(every, None, None, seed)
    except DataError:
        return
    sides = (parts.train, parts.validation, parts.test)
    assert sorted(r.id for side in sides for r in side) == sorted(r.id for r in every)
    assert 2 * len(parts.train) >= len(every)
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert not {question_key(r) for r in sides[one]} & {question_key(r) for r in sides[other]}
        assert not {r.group for r in sides[one] if r.group} & {r.group for r in sides[other]}


def test_files_that_the_user_split_stay_as_split() -> None:
    rows, test = many(30), (ask("question 1"),)
    assert split(rows, (), test, 0).train == rows
    parts = split(rows, None, test, 0)
    assert parts.test == test
    assert len(parts.validation) == 4
    assert split(rows[:3], test, test, 0).train == rows[:3]


def test_too_few_rows_and_one_large_group_are_refused() -> None:
    with pytest.raises(DataError, match="11 usable"):
        split(many(11), None, None, 0)
    with pytest.raises(DataError, match="only 1 groups"):
        split(tuple(ask(f"q{i}", group="all") for i in range(50)), None, None, 0)


def test_few_large_groups_are_split_when_half_remains() -> None:
    rows = tuple(ask(f"q{i}", group=f"g{i % 5}") for i in range(100))
    parts = split(rows, None, None, 0)
    assert {len(parts.train), len(parts.test), len(parts.validation)} == {60, 20}


def test_questions_are_compared_word_for_word_without_case_and_punctuation() -> None:
    train = (ask("Where is my card?"), ask("👍"), ask("की"))
    assert count_overlap((ask("where is  my card"), ask("Where is my card now?")), train) == 1
    assert count_overlap((ask("👎"), ask("क"), ask("!"), ask("")), train) == 0
