"""Agreement against published examples and statsmodels, and the interval against simulation."""

from __future__ import annotations

import numpy as np
import pytest
from statsmodels.stats import inter_rater

from timechat.evals.statistics import agreement
from timechat.evals.statistics.agreement import agreements, alpha, cohen, fleiss


def rate(rows: dict[str, str]) -> dict[int, dict[str, str]]:
    """Annotator to a string of categories, a character an item, `.` where not judged."""
    length = len(next(iter(rows.values())))
    return {i: {name: row[i] for name, row in rows.items() if row[i] != "."} for i in range(length)}


def apart(ratings: dict[int, dict[str, str]]) -> dict[int, str]:
    return {item: str(item) for item in ratings}


def draw(seed: int, items: int, people: int, sure: float) -> dict[int, dict[str, str]]:
    random = np.random.default_rng(seed)
    truth = random.integers(0, 3, items)
    ratings: dict[int, dict[str, str]] = {}
    for i in range(items):
        said = np.where(random.random(people) < sure, truth[i], random.integers(0, 3, people))
        ratings[i] = {f"p{n}": str(value) for n, value in enumerate(said)}
    return ratings


def test_alpha_equals_krippendorffs_own_examples() -> None:
    # Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011): B and C.
    two = rate({"Meg": "aabbdcccedda", "Owen": "babbbcccedd" + "d"})
    assert alpha(two, apart(two)).value == pytest.approx(0.692, abs=5e-4)
    four = rate(
        {"A": "123321412...", "B": "1233224125.3", "C": ".3332342251.", "D": "12332441251."}
    )
    assert alpha(four, apart(four)).value == pytest.approx(0.743, abs=5e-4)


def test_fleiss_kappa_equals_the_published_example() -> None:
    # Fleiss 1971 in the form of the usual textbook table: ten subjects, fourteen raters.
    table = [
        [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
        [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
    ]  # fmt: skip
    ratings = {
        i: {f"p{n}": str(c) for n, c in enumerate(np.repeat(range(5), row))}
        for i, row in enumerate(table)
    }
    found = fleiss(ratings, apart(ratings))
    assert found.value == pytest.approx(0.210, abs=5e-4)
    assert found.annotators == 14


@pytest.mark.parametrize("seed", range(5))
def test_cohen_and_fleiss_equal_statsmodels(seed: int) -> None:
    ratings = draw(seed, 60, 3, 0.6)
    columns = np.array([[int(by[f"p{n}"]) for n in range(3)] for by in ratings.values()])
    counts, _ = inter_rater.aggregate_raters(columns)
    assert fleiss(ratings, apart(ratings)).value == pytest.approx(inter_rater.fleiss_kappa(counts))
    table, _ = inter_rater.to_table(columns[:, :2])
    expected = inter_rater.cohens_kappa(table)
    found = cohen(ratings, ("p0", "p1"), apart(ratings))
    assert found.value == pytest.approx(expected.kappa)
    assert found.ci95 is not None
    assert found.ci95[0] == pytest.approx(expected.kappa_low, abs=0.05)
    assert found.ci95[1] == pytest.approx(expected.kappa_upp, abs=0.05)


def test_alpha_of_two_complete_annotators_is_scotts_pi_with_the_small_sample_term() -> None:
    ratings = draw(1, 50, 2, 0.5)
    pairs = [(by["p0"], by["p1"]) for by in ratings.values()]
    counts = {c: sum(p.count(c) for p in pairs) for c in "012"}
    n = 2 * len(pairs)
    expected = sum(count * (count - 1) for count in counts.values()) / (n * (n - 1))
    observed = sum(a == b for a, b in pairs) / len(pairs)
    assert alpha(ratings, apart(ratings)).value == pytest.approx(
        (observed - expected) / (1 - expected)
    )


def test_the_interval_covers_the_truth_about_as_often_as_it_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(agreement, "NUM_DRAWS", 400)
    truth = alpha(draw(999, 20_000, 2, 0.7), {i: str(i) for i in range(20_000)}).value
    assert truth is not None
    covered = 0
    for seed in range(100):
        ratings = draw(seed, 80, 2, 0.7)
        low, high = alpha(ratings, apart(ratings)).ci95 or (0, 0)
        covered += low <= truth <= high
    assert 88 <= covered <= 100


def test_items_of_one_group_widen_the_interval() -> None:
    ratings = {i: {"p0": str(i % 2), "p1": "0" if i % 3 == 0 else str(i % 2)} for i in range(200)}
    copied = {i: ratings[i // 10] for i in ratings}
    loose = alpha(copied, apart(copied)).ci95
    tied = alpha(copied, {i: str(i // 10) for i in copied}).ci95
    assert loose is not None
    assert tied is not None
    assert tied[1] - tied[0] > 1.5 * (loose[1] - loose[0])


def test_what_is_not_defined_is_said_to_be_so() -> None:
    same = rate({"a": "xxxx", "b": "xxxx"})
    found = alpha(same, apart(same))
    assert found.value is None
    assert found.ci95 is None
    assert "one category" in found.note
    alone = rate({"a": "xyx", "b": "..."})
    assert alpha(alone, apart(alone)).note == "no item with two judgements"
    perfect = rate({"a": "xyxy", "b": "xyxy"})
    assert alpha(perfect, apart(perfect)).value == 1.0
    assert "no disagreement seen" in alpha(perfect, apart(perfect)).note


def test_missing_judgements_leave_items_out_of_fleiss_by_number_and_not_out_of_alpha() -> None:
    ratings = rate({"a": "xyxyxyxy", "b": "xyxxxyxy", "c": "xyxyxy.."})
    found = agreements(ratings, apart(ratings))
    assert [one.items for one in found] == [8, 6, 8, 6, 6]
    assert "2 items" in found[1].note
