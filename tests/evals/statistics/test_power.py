"""Power and what it needs, against statsmodels, the published table and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from statsmodels.stats.power import TTestPower

from timechat.evals.statistics.chance import cluster_means, flip_signs, interval, standard_error
from timechat.evals.statistics.compare import judge_gain
from timechat.evals.statistics.power import foresee, minimal_detectable_effect, power


@pytest.mark.parametrize("clusters", [10, 12, 30, 100, 400])
@pytest.mark.parametrize("effect", [0.1, 0.3, 0.9])
def test_power_is_that_of_statsmodels(clusters: int, effect: float) -> None:
    expected = TTestPower().power(effect_size=effect / 1.3, nobs=clusters, alpha=0.05)
    assert power(effect, 1.3, clusters) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("clusters", [10, 40, 500])
def test_the_smallest_change_found_is_that_of_statsmodels(clusters: int) -> None:
    found = minimal_detectable_effect(2.0, clusters)
    there = TTestPower().power(effect_size=found / 2.0, nobs=clusters, alpha=0.05)
    assert there == pytest.approx(0.80, abs=1e-6)


def test_the_smallest_change_found_matches_the_published_table() -> None:
    # 2.80 sd / sqrt(n): accuracy with 20 % discordant pairs, likelihood with sd 0.3.
    for n, accuracy, nats in ((500, 0.056, 0.038), (1000, 0.040, 0.027), (5000, 0.018, 0.012)):
        assert minimal_detectable_effect(math.sqrt(0.2), n) == pytest.approx(accuracy, abs=5e-4)
        assert minimal_detectable_effect(0.3, n) == pytest.approx(nats, abs=5e-4)


def test_an_effect_as_large_as_foreseen_is_found_as_often_as_the_formula_says() -> None:
    random = np.random.default_rng(5)
    clusters, each, icc, effect, found = 30, 8, 0.3, 0.3, 0
    cluster = np.repeat(np.arange(clusters), each)
    for _ in range(600):
        shared = random.normal(0, math.sqrt(icc), clusters)[cluster]
        values = effect + shared + random.normal(0, math.sqrt(1 - icc), len(cluster))
        means = cluster_means(values, cluster)
        mean = float(means.mean())
        ci95 = interval(mean, standard_error(means), clusters)
        # The p value only draws where the interval alone would make a claim.
        if ci95[0] > 0:
            found += judge_gain(ci95, len(values), clusters, flip_signs(means)) == "improved"
    expected = power(effect, math.sqrt(icc + (1 - icc) / each), clusters)
    assert found / 600 == pytest.approx(expected, abs=0.05)


def test_few_questions_are_told_beforehand_that_no_claim_will_be_made() -> None:
    told = foresee([f"q{i}" for i in range(60)]).write()
    assert told.startswith("60 held-out questions: no claim will be made below 100 questions")
    assert "no claim" in foresee([f"g{i % 9}" for i in range(500)]).write()


def test_what_is_foreseen_names_the_effect_and_the_number_needed() -> None:
    found = foresee([f"q{i}" for i in range(1000)])
    assert found.effect == pytest.approx(0.040, abs=5e-4)
    assert found.needed == pytest.approx(630, abs=5)
    assert "a change of 4.0 points" in found.write()
    assert f"would need about {found.needed:,} questions" in found.write()


def test_questions_in_groups_find_less_than_as_many_alone() -> None:
    alone = foresee([f"q{i}" for i in range(200)])
    grouped = foresee([f"g{i % 20}" for i in range(200)])
    assert grouped.effect > 1.5 * alone.effect
    assert grouped.needed > alone.needed
