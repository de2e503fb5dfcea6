"""Judges: a fair one is believed; one that always says A or loves length is found and named."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from timechat.conversation import Message
from timechat.evals.scoring.judge import CONSTANT, Pair, control_length, judge_pairs, parse_verdict


def pairs(count: int = 120) -> list[Pair]:
    """The new answer is right in three of four."""
    return [
        Pair(
            f"q{i}",
            f"g{i // 2}",
            f"Question {i}?",
            "wrong thing" if i % 4 else "right thing",
            "right thing" if i % 4 else "wrong thing",
            "right thing",
        )
        for i in range(count)
    ]


def shown(messages: Sequence[Message]) -> tuple[str, str]:
    text = messages[-1].content
    first = text.split("Answer A:\n")[1].split("\n\nAnswer B:\n")[0]
    return first, text.split("\n\nAnswer B:\n")[1]


def fair(messages: Sequence[Message]) -> str:
    one, two = ("right" in answer for answer in shown(messages))
    return "TIE" if one == two else "A" if one else "B"


def test_a_fair_judge_is_believed_and_finds_the_better_model() -> None:
    found = judge_pairs(pairs(), fair)
    assert found.believable, found.faults
    assert found.measure is not None
    assert found.measure.after == pytest.approx(0.75)
    assert found.measure.verdict == "improved"
    assert (found.consistency, found.same, found.constant) == (1.0, 0.5, 0.0)
    assert found.length_ci95[0] < 0.75 < found.length_ci95[1]


def test_a_judge_that_always_says_a_is_named_and_claims_nothing() -> None:
    found = judge_pairs(pairs(), lambda _: "A")
    assert found.measure is not None
    assert found.measure.after == 0.5
    assert found.measure.verdict != "improved"
    assert found.consistency == 0.0
    assert any("stands first (100% of verdicts A)" in fault for fault in found.faults)


def test_a_judge_that_loves_length_is_named() -> None:
    def long(messages: Sequence[Message]) -> str:
        one, two = (len(answer) for answer in shown(messages))
        return "TIE" if one == two else "A" if one > two else "B"

    found = judge_pairs(pairs(), long)
    assert any("prefers longer answers" in fault for fault in found.faults)
    assert any("constant answer" in fault for fault in found.faults)
    assert CONSTANT


def test_replies_without_a_verdict_are_counted_and_score_nothing() -> None:
    calls = iter(range(10_000))
    found = judge_pairs(pairs(), lambda m: fair(m) if next(calls) % 3 else None)
    assert found.unjudged > 60
    assert any("no readable verdict" in fault for fault in found.faults)
    assert judge_pairs(pairs(12), lambda _: None).measure is None


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [("A", "A"), ("b.", "B"), ("Answer: TIE", "TIE"), ("A or B", None), ("", None), (None, None)],
)
def test_a_verdict_is_one_word_of_three(reply: str | None, verdict: str | None) -> None:
    assert parse_verdict(reply) == verdict


def test_length_control_takes_the_length_out_and_bootstraps_the_whole_fit() -> None:
    random = np.random.default_rng(3)
    lengths = random.normal(30, 20, 400)
    chance = 1 / (1 + np.exp(-(0.0 + 2.0 * np.tanh(lengths / lengths.std()))))
    shares = (random.random(400) < chance).astype(float)
    raw = shares.mean()
    share, (low, high), beta = control_length(shares, lengths, np.arange(400))
    assert raw > 0.75
    assert low < 0.5 < high
    assert beta == pytest.approx(2.0, abs=0.7)
    # The spread of fitted probabilities would give an interval of a point or two.
    assert high - low > 0.1
    assert abs(share - 0.5) < 0.1


def test_clear_wins_have_a_finite_fit() -> None:
    share, (low, high), _ = control_length(np.ones(50), np.zeros(50), np.arange(50))
    assert 0.9 < share < 1
    assert 0.9 < low <= high < 1
