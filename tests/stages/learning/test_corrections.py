"""What becomes of a queue's judgements: corrections, their wordings, and what they take back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from timechat.conversation import Conversation, Message
from timechat.data.reword import for_checking, for_training
from timechat.evals.scoring.rectify import puts_right
from timechat.ledger.annotation import Queue, open_queue
from timechat.ledger.database import open_ledger
from timechat.ledger.judging import Answer, Item, Judgement
from timechat.stages.learning.corrections import drop_contradicted, gather


@pytest.fixture
def queue(tmp_path: Path) -> Queue:
    return open_queue(open_ledger(tmp_path / "ledger.db"), "own")


def item(
    words: str, group: str = "chat", verdict: str = "corrected", value: str | None = "At 9:30.",
    answer: str | None = "At 8.", who: str = "ann", note: str = "",
) -> Item:  # fmt: skip
    answers = (Answer(answer, "shop"),) if answer is not None else ()
    said = (Judgement(0, who, verdict, value, note=note),)
    return Item("judge", (Message("user", words),), answers, group=group, said=said)


def row(question: str, answer: str, *accepted: str) -> Conversation:
    messages = (Message("user", question), Message("assistant", answer))
    return Conversation(question, messages, answers=accepted)


def test_wordings_of_one_correction_belong_together_and_no_wording_changes_sides(
    queue: Queue,
) -> None:
    first = [item("When do you open?"), *(item(w, answer=None) for w in ("a b?", "c d?"))]
    queue.add(first)
    (one,) = gather(queue).corrections
    assert [p[-1].content for p in one.checked] == ["a b?"]
    assert "c d?" in [p[-1].content for p in one.trained]
    queue.add([item("e f?", answer=None), item("g h?", answer=None)])
    (again,) = gather(queue).corrections
    assert [p[-1].content for p in again.checked] == ["a b?", "g h?"]
    assert {"c d?", "e f?"} <= {p[-1].content for p in again.trained}
    assert again.id == one.id
    assert again.made == 0


def test_the_same_words_again_are_no_other_words(queue: Queue) -> None:
    queue.add([item("When do you open?"), item("when do you open", answer=None)])
    (one,) = gather(queue).corrections
    assert one.made == len(one.checked) > 0


def test_two_corrections_in_one_conversation_stay_apart(queue: Queue) -> None:
    queue.add([item("When do you open?"), item("Who are you?", value="The help desk.")])
    assert len(gather(queue).corrections) == 2


def test_only_what_was_put_right_is_a_correction_and_the_rest_is_counted(queue: Queue) -> None:
    queue.add([
        item("A?", verdict="right", value=None), item("B?", verdict="wrong", value=None),
        item("C?"), Item("judge", (Message("user", "D?"),), (Answer("x"),)),
    ])  # fmt: skip
    gathered = gather(queue)
    assert [c.question for c in gathered.corrections] == ["C?"]
    assert gathered.left_out == {"not_corrected": 1, "wrong": 1, "not_judged": 1}


def test_people_who_disagree_have_put_nothing_right(queue: Queue) -> None:
    queue.add([item("When?"), item("When?", value="At 10.", who="ben")])
    assert gather(queue).left_out == {"disagreement": 1}


def test_a_named_fact_alone_is_looked_for(queue: Queue) -> None:
    queue.add([item("When do you open?", value="We open at 9:30 sharp, dear.", note="9:30")])
    (one,) = gather(queue).corrections
    assert one.score("Half past, that is 9:30") == 1.0
    assert one.score("We open at 10 sharp, dear.") == 0.0


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("We open at 9:30 on weekdays.", 1),
        ("Weekdays from 9:30.", 1),
        ("We open at 8 on weekdays.", 0),
        ("We open on weekdays at 19:30.", 0),
        ("", 0),
    ],
)
def test_an_answer_is_right_when_it_says_what_the_correction_brought(
    answer: str, right: float
) -> None:
    correction, wrong = "We open at 9:30 on weekdays.", "We open at 8 on all days."
    assert puts_right(answer, correction, wrong, "When do you open?") == right


def test_rows_that_teach_what_was_taken_back_are_left_out(queue: Queue) -> None:
    queue.add([item("When do you open?", value="We open at 9:30.", answer="We open at 8.")])
    corrections = gather(queue).corrections
    rows = [
        row("At what time do you open the door?", "We open at 8."),
        row("When do you open, please?", "From 8.", "8"),
        row("When do you close?", "We close at 5.", "5"),
        row("What is eight minus zero?", "8", "8"),
        row("when do you open", "Something else."),
    ]
    kept, dropped = drop_contradicted(rows, corrections)
    assert [r.id for r in kept] == ["When do you close?", "What is eight minus zero?"]
    assert len(dropped) == 3


def test_a_wrong_answer_that_was_right_elsewhere_takes_nothing_back_there(queue: Queue) -> None:
    queue.add([item("Who designs the kites?", value="Ingrid Vale.", answer="Tobias Fenn.")])
    corrections = gather(queue).corrections
    founder = row("Name the person behind the firm.", "Tobias Fenn.", "Tobias Fenn")
    kept, dropped = drop_contradicted([founder], corrections)
    assert (kept, dropped) == ([founder], [])


def test_all_rows_of_a_fact_go_when_one_of_them_is_taken_back(queue: Queue) -> None:
    queue.add([item("When do you open?", value="We open at 9:30.", answer="We open at 8.")])
    rows = [
        replace(row("When do you open, please?", "From 8.", "8"), group="open"),
        replace(row("From what hour may I call?", "From 8.", "8"), group="open"),
        replace(row("How many kites are in a set?", "There are 8.", "8"), group="set"),
    ]
    kept, dropped = drop_contradicted(rows, gather(queue).corrections)
    assert [r.group for r in kept] == ["set"]
    assert len(dropped) == 2


@given(st.text(max_size=80))
def test_rules_never_train_what_they_check(question: str) -> None:
    trained, checked = for_training(question), for_checking(question)
    assert not set(trained) & set(checked)
    assert question not in checked
    assert all(text.strip() for text in (*trained, *checked))


def test_key_words_keep_numbers_and_times() -> None:
    assert "open saturday 8:20" in for_checking("Do you open on Saturday, at 8:20?")
