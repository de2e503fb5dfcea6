"""The statistics, against scipy and against computations written another way."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from timechat.evals.statistics.compare import (
    change_groups,
    compare,
    correct,
    judge_gain,
    judge_retention,
    overall_verdict,
    read_margin,
)
from timechat.records import Measure, Score


def make_scores(values, clusters=None, scorer="test/1"):
    clusters = range(len(values)) if clusters is None else clusters
    return [
        Score(f"item-{i}", f"cluster-{cluster}", float(value), scorer)
        for i, (value, cluster) in enumerate(zip(values, clusters, strict=True))
    ]


def compare_gain(before, after, clusters=None, **options):
    return compare(
        "score",
        make_scores(before, clusters),
        make_scores(after, clusters),
        kind="gain",
        **options,
    )


def mcnemar_of_statsmodels(table):
    from statsmodels.stats.contingency_tables import mcnemar

    return mcnemar(table, exact=True).pvalue


def make_measure(verdict):
    return Measure("score", 0.0, 0.0, 0.0, (0.0, 0.0), 100, 100, verdict)


def test_one_item_a_cluster_gives_the_paired_t_interval():
    random = np.random.default_rng(1)
    before, gain = random.normal(size=(2, 60))
    after = before + gain + 0.4
    found = compare_gain(before, after)
    related = stats.ttest_rel(after, before).confidence_interval(0.95)
    single = stats.ttest_1samp(after - before, 0.0).confidence_interval(0.95)
    assert found.ci95 == pytest.approx((related.low, related.high), abs=1e-9)
    assert found.ci95 == pytest.approx((single.low, single.high), abs=1e-9)
    assert found.before == pytest.approx(before.mean())
    assert found.after == pytest.approx(after.mean())
    assert found.difference == pytest.approx((after - before).mean())
    assert (found.n, found.clusters) == (60, 60)


def test_equal_clusters_give_the_t_interval_of_cluster_means():
    differences = np.random.default_rng(2).normal(0.3, 1, size=(12, 5))
    clusters = np.repeat(np.arange(12), 5)
    found = compare_gain(np.zeros(60), differences.ravel(), clusters)
    means = stats.ttest_1samp(differences.mean(axis=1), 0.0).confidence_interval(0.95)
    assert found.ci95 == pytest.approx((means.low, means.high), abs=1e-9)


def test_unequal_clusters_count_alike_and_the_note_gives_the_mean_over_questions():
    random = np.random.default_rng(3)
    clusters = np.repeat(np.arange(14), random.integers(5, 19, size=14))
    differences = random.normal(size=14)[clusters] + random.normal(size=len(clusters))
    order = random.permutation(len(clusters))
    clusters, differences = clusters[order], differences[order]
    found = compare_gain(np.zeros(len(clusters)), differences, clusters, unit="nats")
    means = np.array([differences[clusters == c].mean() for c in range(14)])
    expected = stats.ttest_1samp(means, 0.0)
    low, high = expected.confidence_interval(0.95)
    assert found.ci95 == pytest.approx((low, high), abs=1e-9)
    assert found.difference == pytest.approx(means.mean())
    assert f"over single questions {differences.mean():+.2g} nats" in found.note


@pytest.mark.parametrize("size", [5, 8, 10])
def test_few_clusters_give_the_exact_permutation_p(size):
    random = np.random.default_rng(size)
    before, after = random.integers(0, 4, size=(2, size)).astype(float)
    expected = stats.permutation_test(
        (after, before),
        lambda a, b, axis: np.mean(a - b, axis=axis),
        vectorized=True,
        permutation_type="samples",
        n_resamples=np.inf,
    )
    assert compare_gain(before, after).p_value == pytest.approx(expected.pvalue, abs=1e-12)


def test_many_clusters_give_nearly_the_p_of_the_t_test_and_the_same_one_each_time():
    random = np.random.default_rng(5)
    before = random.normal(size=80)
    after = before + random.normal(0.2, 1, size=80)
    found = compare_gain(before, after, seed=7)
    assert found.p_value == pytest.approx(stats.ttest_rel(after, before).pvalue, abs=0.02)
    assert found == compare_gain(before, after, seed=7)


def test_drawn_p_is_never_zero():
    assert compare_gain(np.zeros(40), np.full(40, 0.5)).p_value == pytest.approx(1 / 10_001)


def test_null_comparisons_of_correlated_clusters_rarely_get_a_verdict():
    random = np.random.default_rng(11)
    false_verdicts = small_p = 0
    for _ in range(400):
        clusters = np.repeat(np.arange(18), random.integers(4, 11, size=18))
        # ICC 0.3: variance 0.3 between clusters, 0.7 within.
        shared = random.normal(0, math.sqrt(0.3), size=18)[clusters]
        differences = shared + random.normal(0, math.sqrt(0.7), size=len(clusters))
        found = compare_gain(np.zeros(len(clusters)), differences, clusters)
        false_verdicts += found.verdict != "inconclusive"
        small_p += found.p_value < 0.05
    # 5 % of 400 is 20 with a standard deviation of 4.4; three of them allow 7 to 33.
    assert 7 <= false_verdicts <= 33
    assert 7 <= small_p <= 33


def test_differences_that_are_all_zero_give_the_interval_zero_to_zero():
    values = np.random.default_rng(0).normal(size=120)
    found = compare_gain(values, values, np.arange(120) // 4)
    assert found.ci95 == (0.0, 0.0)
    assert found.p_value == 1.0
    assert found.verdict == "not_improved"


def test_lower_is_better_turns_signs_and_difference_stays_after_minus_before():
    random = np.random.default_rng(4)
    before = random.normal(3.0, 0.2, size=100)
    after = before - 1.0 + random.normal(0, 0.1, size=100)
    found = compare_gain(before, after, higher_is_better=False, unit="nats")
    assert found.verdict == "improved"
    assert found.before == pytest.approx(-before.mean())
    assert found.difference == pytest.approx(found.after - found.before)
    assert "sign turned" in found.note


def test_pairs_are_made_by_item_and_not_by_order():
    values = np.random.default_rng(8).normal(size=30)
    before, after = make_scores(values), make_scores(values + 1)
    straight = compare("s", before, after, kind="gain")
    assert compare("s", before, after[::-1], kind="gain") == straight


@pytest.mark.parametrize(("n", "clusters"), [(99, 99), (100, 9), (40, 4), (1, 1)])
def test_too_few_items_or_clusters_get_no_verdict_and_a_note(n, clusters):
    index = np.arange(n) % clusters
    gain = compare_gain(np.zeros(n), np.ones(n), index)
    assert gain.verdict == "inconclusive"
    assert "no claim below 100 items or 10 clusters" in gain.note
    before, after = make_scores(np.ones(n), index), make_scores(np.ones(n), index)
    kept = compare("general", before, after, kind="retention", margin=0.05)
    assert kept.verdict == "undecided"


def test_enough_items_and_clusters_get_a_verdict_without_a_caution():
    index = np.arange(100) % 10
    found = compare_gain(np.zeros(100), np.random.default_rng(6).normal(5, 1, size=100), index)
    assert found.verdict == "improved"
    assert "no claim" not in found.note


def test_right_or_wrong_answers_of_single_questions_get_mcnemars_exact_p():
    random = np.random.default_rng(21)
    before, after = random.integers(0, 2, size=(2, 140)).astype(float)
    better, worse = int(((after - before) == 1).sum()), int(((after - before) == -1).sum())
    found = compare_gain(before, after)
    table = [[0, better], [worse, 0]]
    assert found.p_value == pytest.approx(mcnemar_of_statsmodels(table), abs=1e-12)
    assert f"{better} questions better, {worse} worse (McNemar exact)" in found.note


def test_right_or_wrong_answers_in_groups_are_not_counted_as_independent():
    # Ten of twenty groups of six turn right together, eight wrong: 60 against 48 is no evidence.
    change = np.repeat([1.0] * 10 + [-1.0] * 8 + [0.0] * 2, 6)
    before = (change < 0).astype(float)
    after = (change > 0).astype(float)
    found = compare_gain(before, after, np.repeat(np.arange(20), 6))
    assert found.p_value > 0.5
    assert "60 questions better, 48 worse" in found.note
    assert "McNemar" not in found.note


def test_an_interval_and_a_p_value_that_disagree_make_no_claim():
    assert judge_gain((0.001, 0.2), 200, 50, p_value=0.06) == "inconclusive"
    assert judge_gain((0.001, 0.2), 200, 50, p_value=0.04) == "improved"


def test_holm_takes_back_a_claim_that_several_measures_make_by_luck():
    lucky = Measure("a", 0, 1, 1, (0.01, 2), 100, 100, "improved", p_value=0.03)
    other = Measure("b", 0, 0, 0, (-1, 1), 100, 100, "inconclusive", p_value=0.5)
    sure = Measure("c", 0, 1, 1, (0.5, 2), 100, 100, "improved", p_value=0.001)
    found = correct([lucky, other, sure])
    assert [m.verdict for m in found] == ["inconclusive", "inconclusive", "improved"]
    assert [m.p_adjusted for m in found] == pytest.approx([0.06, 0.5, 0.003])
    assert "Holm" in found[0].note
    with pytest.raises(ValueError, match="at most 3"):
        correct([lucky, other, sure, sure])


def test_one_cluster_has_no_finite_interval():
    assert compare_gain([0.0] * 30, [1.0] * 30, [0] * 30).ci95 == (-math.inf, math.inf)


@pytest.mark.parametrize(
    ("ci95", "verdict"),
    [
        ((0.001, 0.2), "improved"),
        ((0.0, 0.2), "inconclusive"),
        ((-0.1, 0.001), "inconclusive"),
        ((-0.1, 0.0), "not_improved"),
        ((-0.2, -0.1), "not_improved"),
    ],
)
def test_gain_is_judged_by_zero(ci95, verdict):
    assert judge_gain(ci95, 200, 50) == verdict


@pytest.mark.parametrize(
    ("ci95", "verdict"),
    [
        ((-0.0499, 0.01), "kept"),
        ((-0.04, -0.01), "kept"),
        ((-0.05, 0.01), "undecided"),
        ((-0.08, -0.05), "undecided"),
        ((-0.08, -0.0501), "lost"),
    ],
)
def test_retention_is_judged_by_the_margin(ci95, verdict):
    assert judge_retention(ci95, 200, 50, 0.05) == verdict


def test_retention_names_its_margin_in_the_note():
    values = np.ones(100)
    found = compare(
        "general", make_scores(values), make_scores(values), kind="retention", margin=0.05
    )
    assert found.verdict == "kept"
    assert read_margin(found) == "margin 5 points"
    assert read_margin(compare_gain(values, values)) == ""


@pytest.mark.parametrize(("kind", "margin"), [("retention", None), ("retention", -1), ("gain", 1)])
def test_a_margin_belongs_to_retention_alone(kind, margin):
    scores = make_scores(np.ones(30))
    with pytest.raises(ValueError, match="margin"):
        compare("s", scores, scores, kind=kind, margin=margin)


def test_a_mismatch_names_the_first_missing_item():
    scores = make_scores(np.ones(30))
    with pytest.raises(ValueError, match=r"'item-3' .* missing after"):
        compare("s", scores, scores[:3] + scores[5:], kind="gain")
    with pytest.raises(ValueError, match=r"'item-0' .* missing before"):
        compare("s", scores[1:], scores, kind="gain")


def test_scores_that_cannot_be_paired_are_refused():
    scores = make_scores(np.ones(30))
    with pytest.raises(ValueError, match="twice"):
        compare("s", [*scores, scores[0]], scores, kind="gain")
    with pytest.raises(ValueError, match="scorer"):
        compare("s", scores, make_scores(np.ones(30), scorer="test/2"), kind="gain")
    with pytest.raises(ValueError, match="cluster"):
        compare("s", scores, make_scores(np.ones(30), [0] * 30), kind="gain")
    with pytest.raises(ValueError, match="nan"):
        compare("s", scores, make_scores([math.nan] + [1.0] * 29), kind="gain")
    with pytest.raises(ValueError, match="no items"):
        compare("s", [], [], kind="gain")


def test_overall_verdict_needs_every_primary_measure():
    def judge(*verdicts):
        return overall_verdict([make_measure(verdict) for verdict in verdicts])

    assert judge("improved", "improved") == "improved"
    assert judge("improved", "inconclusive") == "inconclusive"
    assert judge("improved", "not_improved", "inconclusive") == "not_improved"
    assert judge() == "inconclusive"


def test_groups_change_by_their_own_means():
    before = make_scores([0, 0, 1, 1, 1], [0, 0, 1, 1, 1])
    after = make_scores([1, 0, 1, 1, 0], [0, 0, 1, 1, 1])
    groups = change_groups(before, after)
    assert groups["cluster-0"] == {"before": 0, "after": 0.5, "difference": 0.5, "n": 2}
    assert groups["cluster-1"]["difference"] == pytest.approx(-1 / 3)
