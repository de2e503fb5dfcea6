"""Three sets and one decision: what is offered, and what is not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from timechat.conversation import Message
from timechat.evals.questions.run import Choosing, Likelihood
from timechat.evals.questions.suite import OWN, General
from timechat.records import Score
from timechat.stages.learning import verdict
from timechat.stages.learning.corrections import Correction
from timechat.stages.learning.exam import Exam, Sat
from timechat.stages.learning.verdict import judge
from timechat.stages.watch import Watcher


def correction(name: str) -> Correction:
    asked = ((Message("user", f"What is {name}?"),),)
    others = tuple((Message("user", f"{name}, what is {i}?"),) for i in range(2))
    return Correction(name, f"It is answer{name}.", "No idea.", "", asked, others, 0)


def exam(count: int = 3) -> Exam:
    corrections = tuple(correction(f"n{i}") for i in range(count))
    return Exam(corrections, "", None, General((), (), ()), 8, 0.05, (), Watcher())


def sat(
    right: int, lost: int = 0, wrong_choices: int = 0, n: int = 160, of: int = 3, hits: int = 8
) -> Sat:
    said = tuple((f"answern{i}",) * 2 if i < right else ("no",) * 2 for i in range(of))
    scores = tuple(Score(f"t{i}", f"g{i // 4}", float(i >= lost), "contains/1") for i in range(n))
    choices = tuple(
        Choosing(f"c{i}", f"c{i}", "facts", (-9.0, -1.0) if i < wrong_choices else (-1.0, -2.0))
        for i in range(200)
    )
    references = tuple(Likelihood(f"t{i}", -9.0, 10, hits) for i in range(n))
    return Sat(said, scores, ("",) * n, references, choices)


@pytest.fixture(autouse=True)
def as_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verdict, "version_in_use", lambda run: None)


def decide(before: Sat, after: Sat, corrections: int = 3) -> dict[str, Any]:
    asked = exam(corrections)
    return judge(Path("run"), replace(asked, task=None), before, after)


def test_what_was_learned_without_loss_is_offered() -> None:
    found = decide(sat(0), sat(3))
    assert found["decision"] == "offered"
    assert found["sets"]["corrections"]["right_after"] == 3
    assert found["sets"]["earlier"]["verdict"] == "kept"
    assert found["sets"]["retention"]["verdict"] == "kept"


def test_what_was_not_learned_is_not_offered() -> None:
    found = decide(sat(0), sat(1))
    assert found["decision"] == "refused"
    assert "only 1 of 3 corrections" in found["reasons"][0]


def test_a_loss_of_the_test_sets_tokens_forbids() -> None:
    found = decide(sat(0), sat(3, hits=7))
    assert found["decision"] == "refused"
    assert "earlier test set by tokens was lost" in found["reasons"][0]


def test_fewer_whole_answers_forbid_even_where_the_tokens_are_kept() -> None:
    found = decide(sat(0), sat(3, lost=60))
    assert found["sets"]["earlier"]["verdict"] == "kept"
    assert found["sets"]["earlier_answers"]["verdict"] == "lost"
    assert found["decision"] == "refused"
    assert "whole answers are fewer: 100.0% to 62.5%" in found["reasons"][0]


def test_whole_answers_need_not_prove_that_none_was_lost() -> None:
    """Thirty turned each way: nothing lost on the whole, and an interval wider than the margin."""
    turned = [replace(s, value=float(i % 8 > 2)) for i, s in enumerate(sat(0).scores)]
    other = [replace(s, value=float(i % 8 < 5)) for i, s in enumerate(sat(0).scores)]
    found = decide(replace(sat(0), scores=tuple(turned)), replace(sat(3), scores=tuple(other)))
    assert found["sets"]["earlier_answers"]["verdict"] == "undecided"
    assert found["decision"] == "offered"


def test_a_loss_of_general_ability_forbids() -> None:
    found = decide(sat(0), sat(3, wrong_choices=60))
    assert found["decision"] == "refused"
    assert "general ability was lost" in found["reasons"][0]


def with_own(found: Sat, wrong: int, n: int = 160) -> Sat:
    values = [(-9.0, -1.0) if i < wrong else (-1.0, -2.0) for i in range(n)]
    own = tuple(Choosing(f"own:{i}", f"own:{i}", OWN, v) for i, v in enumerate(values))
    return replace(found, own=own)


def test_a_loss_among_the_users_own_questions_forbids_by_itself() -> None:
    found = decide(with_own(sat(0), 0), with_own(sat(3), 60))
    assert found["decision"] == "refused"
    assert found["sets"]["retention"]["verdict"] == "kept"
    assert found["sets"]["own"]["verdict"] == "lost"
    assert found["reasons"] == [
        "ability on your own retention questions was lost: 100.0% to 62.5%, at worst -45.1 points "
        "where -5 are allowed"
    ]
    assert decide(with_own(sat(0), 0), with_own(sat(3), 0))["decision"] == "offered"
    few = decide(with_own(sat(0), 0, 12), with_own(sat(3), 4, 12))
    assert "4 of 12 questions are answered worse" in few["reasons"][0]


def test_what_cannot_be_told_from_a_loss_forbids() -> None:
    found = decide(sat(0), sat(3, wrong_choices=8))
    assert found["decision"] == "refused"
    assert "may have been lost" in found["reasons"][0]


def test_few_test_questions_forbid_only_a_loss_of_more_than_one() -> None:
    assert decide(sat(0, n=12), sat(3, lost=1, n=12))["decision"] == "offered"
    assert decide(sat(0, n=12), sat(3, n=12))["sets"]["earlier"]["verdict"] == "too_few"
    found = decide(sat(0, n=12), sat(3, lost=4, n=12))
    assert found["decision"] == "refused"
    assert "4 of 12 questions are answered worse" in found["reasons"][0]


def test_small_losses_that_add_up_over_versions_forbid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verdict, "version_in_use", lambda run: object())
    first = sat(0)
    known = (General((), (), ()), first)
    monkeypatch.setattr(Exam, "known", lambda self, folder: known)
    found = decide(sat(0, wrong_choices=20), sat(3, wrong_choices=20))
    assert found["sets"]["retention"]["verdict"] == "kept"
    assert found["decision"] == "refused"
    assert "since the run was trained was lost" in found["reasons"][0]


def test_corrections_without_other_words_prove_nothing() -> None:
    asked = exam(1)
    bare = replace(asked, corrections=(replace(asked.corrections[0], checked=()),))
    found = judge(Path("run"), bare, replace(sat(0), said=((),)), replace(sat(0), said=((),)))
    assert found["decision"] == "refused"
    assert "in other words" in found["reasons"][0]
