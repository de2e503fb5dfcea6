"""The queue: who gets what, what may be said, undo, suggestions, several people at once."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import replace

import pytest

import timechat.ledger.annotation as room
from timechat.conversation import Message
from timechat.errors import LedgerError
from timechat.ledger.annotation import Progress, Queue, open_queue
from timechat.ledger.database import Ledger
from timechat.ledger.judging import Answer, Item, Judgement, Suggestion


def judge(number: int, answer: str = "yes") -> Item:
    prompt = (Message("user", f"question {number}"),)
    return Item("judge", prompt, (Answer(answer, "row"),), f"r{number}")


def pair(number: int) -> Item:
    prompt = (Message("user", f"question {number}"),)
    return Item("choose", prompt, (Answer("left", "base"), Answer("right", "tuned")))


def fill(ledger: Ledger, *items: Item, annotators: int = 1) -> Queue:
    queue = open_queue(ledger, "q", annotators)
    queue.add(items)
    return queue


def say(queue: Queue, name: str, verdict: str, value: str | None = None) -> int:
    item = queue.claim(name)
    assert item is not None
    queue.answer(Judgement(item.id, name, verdict, value))
    return item.id


def test_each_item_goes_to_as_many_people_as_asked_and_no_more(ledger: Ledger) -> None:
    queue = fill(ledger, judge(1), judge(2), judge(3), annotators=2)
    for name in ("ann", "ben", "cleo"):
        while (item := queue.claim(name)) is not None:
            queue.answer(Judgement(item.id, name, "right"))
    counts = Counter(said.item for said in queue.judgements())
    assert sorted(counts.values()) == [2, 2, 2]
    assert queue.progress("cleo") == Progress(items=3, finished=3, mine=0, left=0)


def test_an_item_on_a_screen_goes_to_nobody_else_until_the_claim_ends(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = fill(ledger, judge(1), judge(2))
    first, second = queue.claim("ann"), queue.claim("ben")
    assert first is not None
    assert second is not None
    assert first.id != second.id
    assert queue.claim("cleo") is None
    now = room.now_ms()
    monkeypatch.setattr(room, "now_ms", lambda: now + room.CLAIM_MS + 1000)
    assert queue.claim("cleo") is not None


def test_who_comes_back_finds_the_item_they_left(ledger: Ledger) -> None:
    queue = fill(ledger, judge(1), judge(2))
    first = queue.claim("ann")
    assert first == queue.claim("ann")


def test_many_people_at_once_never_judge_one_item_too_often(ledger: Ledger) -> None:
    queue = fill(ledger, *(judge(number) for number in range(12)), annotators=2)

    def work(name: str) -> None:
        while (item := queue.claim(name)) is not None:
            queue.answer(Judgement(item.id, name, "right"))

    threads = [threading.Thread(target=work, args=(f"person {n}",)) for n in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    counts = Counter(said.item for said in queue.judgements())
    assert sorted(counts.values()) == [2] * 12


def test_a_skipped_item_goes_to_somebody_else_and_not_back(ledger: Ledger) -> None:
    queue = fill(ledger, judge(1))
    skipped = say(queue, "ann", "skip")
    assert queue.claim("ann") is None
    assert say(queue, "ben", "right") == skipped


def test_a_changed_mind_counts_and_the_old_one_is_kept_as_withdrawn(ledger: Ledger) -> None:
    queue = fill(ledger, judge(1), judge(2))
    first = say(queue, "ann", "right")
    again = queue.undo("ann")
    assert again is not None
    assert again.id == first
    assert queue.claim("ann") == again
    queue.answer(Judgement(first, "ann", "corrected", "no"))
    assert [(s.verdict, s.value) for s in queue.judgements()] == [("corrected", "no")]
    with ledger.read() as connection:
        rows = connection.execute(room.select(room.said_rows)).all()
    assert [row.withdrawn_ms is None for row in rows] == [False, True]
    assert queue.undo("ben") is None


def test_the_same_file_twice_adds_nothing_twice(ledger: Ledger) -> None:
    queue = fill(ledger, judge(1), judge(2))
    assert queue.add([judge(1), judge(2), judge(3)]) == 1
    assert [item.row_id for item in queue.items()] == ["r1", "r2", "r3"]


def test_who_said_it_and_when_is_kept(ledger: Ledger) -> None:
    queue = fill(ledger, judge(1))
    before = room.now_ms()
    say(queue, " ann ", "right")
    said = queue.judgements()[0]
    assert said.annotator == "ann"
    assert before <= said.created_ms <= room.now_ms()


@pytest.mark.parametrize(
    ("verdict", "value", "expected"),
    [
        ("rihgt", None, "did you mean 'right'"),
        ("first", None, "no verdict"),
        ("corrected", None, "needs value"),
        ("right", "x", "takes no value"),
        ("corrected", "  ", "characters"),
        ("corrected", "x" * 100_001, "characters"),
    ],
)
def test_what_cannot_be_said_is_refused(
    ledger: Ledger, verdict: str, value: str | None, expected: str
) -> None:
    queue = fill(ledger, judge(1))
    with pytest.raises(LedgerError, match=expected):
        queue.answer(Judgement(queue.items()[0].id, "ann", verdict, value))
    assert queue.judgements() == []


@pytest.mark.parametrize(
    ("verdict", "ticks", "expected"),
    [
        ("first", ("shoter",), "did you mean 'shorter'"),
        ("second", ("shorter", "shorter"), "ticked twice"),
        ("tie", ("clearer",), "'tie' names none"),
        ("neither", ("clearer",), "'neither' names none"),
        ("skip", ("clearer",), "'skip' names none"),
    ],
)
def test_a_tick_is_a_known_one_once_and_of_an_answer_that_won(
    ledger: Ledger, verdict: str, ticks: tuple[str, ...], expected: str
) -> None:
    queue = fill(ledger, pair(1))
    with pytest.raises(LedgerError, match=expected):
        queue.answer(Judgement(queue.items()[0].id, "ann", verdict, ticks=ticks))
    assert queue.judgements() == []


def test_ticks_are_kept_with_the_pick_and_none_is_not_the_same_as_not_asked(
    ledger: Ledger,
) -> None:
    queue = fill(ledger, pair(1), annotators=3)
    number = queue.items()[0].id
    said = {"ann": ("clearer", "shorter"), "ben": (), "cleo": None}
    for name, ticks in said.items():
        queue.answer(Judgement(number, name, "first", ticks=ticks))
    assert {j.annotator: j.ticks for j in queue.judgements()} == said
    queue.undo("ann")
    queue.answer(Judgement(number, "ann", "second", ticks=("more accurate",)))
    assert {j.annotator: j.ticks for j in queue.judgements()}["ann"] == ("more accurate",)


def test_a_pick_that_comes_back_without_ticks_takes_none_away(ledger: Ledger) -> None:
    queue = fill(ledger, pair(1))
    queue.answer(Judgement(queue.items()[0].id, "ann", "first", ticks=("clearer",)))
    queue.add([replace(pair(1), said=(Judgement(0, "ann", "first"),))])
    assert [j.ticks for j in queue.judgements()] == [("clearer",)]
    queue.add([replace(pair(1), said=(Judgement(0, "ann", "first", ticks=("shorter",)),))])
    assert [j.ticks for j in queue.judgements()] == [("shorter",)]


def test_an_unknown_item_and_a_nameless_annotator_are_refused(ledger: Ledger) -> None:
    queue = fill(ledger, judge(1))
    with pytest.raises(LedgerError, match="no item 99"):
        queue.answer(Judgement(99, "ann", "right"))
    for name in ("", "  ", "a\x1b[2J", "x" * 201):
        with pytest.raises(LedgerError, match="printable"):
            queue.claim(name)


def test_a_label_outside_the_closed_set_is_refused_with_the_nearest(ledger: Ledger) -> None:
    queue = open_queue(ledger, "q", labels=["card_arrival", "lost_card"])
    queue.add([judge(1, "lost_card")])
    with pytest.raises(LedgerError, match="did you mean 'card_arrival'"):
        queue.answer(Judgement(queue.items()[0].id, "ann", "corrected", "card_arival"))


def test_a_suggestion_is_kept_apart_and_names_its_model(ledger: Ledger) -> None:
    queue = fill(ledger, judge(1))
    number = queue.items()[0].id
    queue.suggest(number, Suggestion("starter", "no"))
    queue.suggest(number, Suggestion("starter", "nay"))
    item = queue.claim("ann")
    assert item is not None
    assert item.suggestions == (Suggestion("starter", "nay"),)
    assert queue.judgements() == []


def test_the_order_on_the_screen_is_a_fair_coin_that_falls_the_same_again() -> None:
    orders = [pair(number).shown_order("ann") for number in range(400)]
    assert orders == [pair(number).shown_order("ann") for number in range(400)]
    assert 160 < sum(order == (0, 1) for order in orders) < 240
    others = [pair(number).shown_order("ben") for number in range(400)]
    assert 160 < sum(a == b for a, b in zip(orders, others, strict=True)) < 240


def test_queues_of_one_ledger_do_not_see_each_other(ledger: Ledger) -> None:
    one, two = open_queue(ledger, "one"), open_queue(ledger, "two")
    one.add([judge(1)])
    assert two.items() == []
    assert two.claim("ann") is None
    with pytest.raises(LedgerError, match="no item"):
        two.answer(Judgement(one.items()[0].id, "ann", "right"))
