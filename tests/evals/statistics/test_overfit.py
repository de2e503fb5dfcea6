"""Overfitting is named with its step and what to take instead, and a wobble is not."""

from __future__ import annotations

import pytest

from timechat.evals.statistics.overfit import Look, name_overfit


def looks(losses: list[float], accuracies: list[float]) -> list[Look]:
    pairs = enumerate(zip(losses, accuracies, strict=True))
    return [Look(10 * i, loss, 0.02, right, 0.01, 0.5) for i, (loss, right) in pairs]


def test_a_rising_loss_with_falling_answers_is_overfitting_since_its_lowest() -> None:
    found = name_overfit(looks([2.0, 1.2, 1.1, 1.5, 1.9], [0.3, 0.6, 0.66, 0.6, 0.5]))
    assert found is not None
    assert (found.found, found.began, found.take) == ("overfitted", 20, 20)
    assert found.loss_rise == pytest.approx(0.8)
    assert found.gap == pytest.approx(1.4)
    assert "take step 20 instead" in found.text


def test_a_rising_loss_with_better_answers_is_only_surer_of_itself() -> None:
    found = name_overfit(looks([2.0, 1.2, 1.4, 1.6], [0.3, 0.5, 0.6, 0.64]))
    assert found is not None
    assert found.found == "sure of itself"
    assert found.take == 30


def test_a_wobble_is_no_overfitting() -> None:
    found = name_overfit(looks([2.0, 1.2, 1.21, 1.2], [0.3, 0.5, 0.5, 0.5]))
    assert found is not None
    assert found.found == "none"


def test_two_validations_tell_nothing() -> None:
    assert name_overfit(looks([2.0, 1.0], [0.1, 0.2])) is None
