"""Intervals, p values and corrections against statsmodels and scipy, to 1e-6."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.contingency_tables import mcnemar as their_mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import DescrStatsW

from timechat.evals.statistics.chance import (
    cluster_means,
    flip_signs,
    holm,
    interval,
    mcnemar,
    standard_error,
)


def test_the_interval_is_that_of_statsmodels() -> None:
    means = np.random.default_rng(1).normal(0.2, 1, size=37)
    found = interval(float(means.mean()), standard_error(means), 37)
    assert found == pytest.approx(DescrStatsW(means).tconfint_mean(0.05), abs=1e-6)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=3))
def test_holm_is_that_of_statsmodels(values: list[float]) -> None:
    expected = multipletests(values, method="holm")[1]
    assert holm(values) == pytest.approx(list(expected), abs=1e-9)


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_that_of_statsmodels(better: int, worse: int) -> None:
    expected = 1.0 if better + worse == 0 else their_mcnemar([[5, better], [worse, 5]]).pvalue
    assert mcnemar(better, worse) == pytest.approx(expected, abs=1e-6)


def test_flipping_signs_of_cluster_means_is_exact_up_to_16_and_close_above() -> None:
    means = np.random.default_rng(2).normal(0.3, 1, size=16)
    exact = flip_signs(means)
    # The same 16 with two clusters that never change: every flip of those is a tie.
    drawn = flip_signs(np.concatenate([means, [0.0, 0.0]]))
    assert drawn == pytest.approx(exact, abs=0.02)


def test_cluster_means_weigh_each_question_of_a_cluster_alike() -> None:
    values, cluster = np.array([1.0, 3.0, 10.0]), np.array([0, 0, 1])
    assert cluster_means(values, cluster).tolist() == [2.0, 10.0]


def test_one_cluster_tells_nothing_of_chance() -> None:
    assert standard_error(np.array([0.4])) == float("inf")
    assert standard_error(np.zeros(40)) == 0.0
