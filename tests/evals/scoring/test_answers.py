"""Planted faults are found and named: a worse group, a leak, a broken format, copied rows."""

from __future__ import annotations

from conftest import conversation

from timechat.conversation import Conversation, Message
from timechat.evals.scoring.answers import (
    describe,
    differ_most,
    find_leaks,
    find_losses,
    find_regressions,
    gained_and_lost,
    likeness,
    text_measures,
)
from timechat.evals.statistics.compare import change_groups
from timechat.records import Sample, Score


def questions(count: int, reference: str = '{"ok": true}') -> list[Conversation]:
    return [conversation(f"q{i}", f"Question {i}?", reference) for i in range(count)]


def test_a_planted_regression_is_named_though_the_whole_got_better() -> None:
    before = [Score(f"q{i}", f"g{i % 20}", float(i % 20 == 7), "t/1") for i in range(120)]
    after = [Score(f"q{i}", f"g{i % 20}", float(i % 20 != 7), "t/1") for i in range(120)]
    found = find_regressions(change_groups(before, after))
    assert found == ["group 'g7' got worse: 100% to 0% (6 questions)"]


def test_a_planted_format_break_is_named() -> None:
    asked = questions(120)
    good, broken = ['{"ok": true}'] * 120, ['{"ok": tr'] * 100 + ['{"ok": true}'] * 20
    losses = find_losses(text_measures(asked, good, broken))
    assert losses == ["answers keep their format less often: 100% to 17%"]
    assert find_losses(text_measures(asked, broken, good)) == []


def test_copied_rows_are_named() -> None:
    row = " ".join(f"word{i}" for i in range(60))
    asked = questions(120, "Short.")
    found = text_measures(asked, ["Short."] * 120, [row] * 120, trained=[row])
    assert find_losses(found) == ["answers copy training rows word for word: 0% to 100%"]


def test_a_planted_leak_is_named_with_its_first_question() -> None:
    asked = questions(10)
    trained = [conversation("t", "question  3?", "yes")]
    assert find_leaks(asked, []) == []
    (found,) = find_leaks(asked, trained)
    assert found.startswith("LEAK: 1 of 10 questions")
    assert "Question 3?" in found


def test_the_best_and_worst_changes_hold_only_changes() -> None:
    samples = [
        Sample(f"q{i}", "old", "new", "ref", score_before=0.5, score_after=0.5 + change)
        for i, change in enumerate([0.0, 0.5, -0.5, 0.1, -0.1] * 10)
    ]
    best, worst = gained_and_lost(samples)
    assert len(best) == len(worst) == 20
    assert [s.score_after for s in best[:10]] == [1.0] * 10
    assert all(s.score_after < 0.5 for s in worst if s.score_after is not None)


def test_lengths_variety_and_empty_answers_are_described() -> None:
    system = Conversation("a", (Message("user", "Hi"), Message("assistant", "Hello there")))
    told = describe([system], [""], ["Hello you"])
    assert told["before"] == {"mean_words": 0.0, "distinct_2": 0.0, "empty": 1}
    assert told["after"]["mean_words"] == 2.0


def test_the_answers_that_changed_most_are_listed_whatever_their_scores_say() -> None:
    samples = [
        Sample("same", "It is green.", "It is green.", "green", "", 1.0, 1.0),
        Sample("near", "It is green.", "It is green!", "green", "", 1.0, 1.0),
        Sample("far", "It is green.", "Perhaps tomorrow we shall", "x", "", 0.0, 0.0),
        Sample("gone", "It is green.", "", "x", "", 0.0, 0.0),
    ]
    assert [s.question for s in differ_most(samples)] == ["gone", "far", "near"]
    assert likeness(samples[0]) == 1.0
