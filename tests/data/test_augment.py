"""Word dropout leaves words out, and nothing that an answer hangs on."""

from __future__ import annotations

import random

from conftest import conversation
from hypothesis import given
from hypothesis import strategies as st

from timechat.data.augment import drop_words

ROW = conversation(
    "a", "Please tell me, when do you open on day 24 of May?", "On 24 May we open at nine."
)


@given(st.lists(st.text(min_size=1), min_size=1), st.floats(0, 0.99), st.integers())
def test_what_is_left_is_the_question_with_words_missing(
    words: list[str], share: float, seed: int
) -> None:
    question = " ".join(words)
    row = conversation("a", question or "x", "An answer.")
    found = drop_words(row, share, random.Random(seed)).messages[0].content
    rest = iter(question.split())
    assert all(word in rest for word in found.split())
    assert bool(found.split()) == bool(question.split())


def test_numbers_and_the_words_of_the_answer_stay() -> None:
    for seed in range(50):
        left = drop_words(ROW, 0.9, random.Random(seed)).messages[0].content.split()
        assert {"24", "May?", "open", "on"} <= set(left)


def test_about_the_share_is_left_out_and_answers_are_untouched() -> None:
    row = conversation("a", " ".join(["word"] * 1000), "Yes.")
    found = drop_words(row, 0.2, random.Random(0))
    assert 740 < len(found.messages[0].content.split()) < 860
    assert found.messages[1] == row.messages[1]
    assert found.id == row.id


def test_a_share_of_zero_changes_nothing() -> None:
    assert drop_words(ROW, 0.0, random.Random(0)) is ROW


def test_the_same_seed_leaves_the_same_words_out() -> None:
    one, two = (drop_words(ROW, 0.5, random.Random("3-7")) for _ in range(2))
    assert one == two
