"""How far several people agree beyond chance: Cohen, Fleiss, Krippendorff, each with an interval.

Pure arithmetic on categories; who said what is `ledger.annotation`'s. All three are one formula,
(observed - expected) / (1 - expected); they differ in what chance means, and in which items count.
Each is a function of sums over items, so the interval comes from drawing clusters of items anew
(percentile bootstrap): items of one group rise and fall together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ratings = Mapping[Hashable, Mapping[str, str]]
"""Item to annotator to category."""

NUM_DRAWS = 2_000
FEW_CLUSTERS = 30
"""Below it a percentile interval tends to be too narrow, and the note says so."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """One coefficient. `value` is None where it is not defined, and `note` says why.

    `observed` is the share of pairs of judgements that agree, chance included.
    """

    name: str
    value: float | None
    ci95: tuple[float, float] | None
    observed: float | None
    items: int
    clusters: int
    annotators: int
    note: str = ""


@dataclass(frozen=True, slots=True)
class _Sums:
    """What a coefficient is made of: a row of additive features per item, and how to combine them.

    `combine` maps summed features (draws × features) to values, NaN where undefined.
    """

    features: Floats
    combine: Callable[[Floats], Floats]
    observe: Callable[[Floats], Floats]


def cohen(ratings: Ratings, pair: tuple[str, str], clusters: Mapping[Hashable, str]) -> Agreement:
    """Cohen's kappa (1960) of two annotators, over the items that both judged."""
    both = {item: by for item, by in ratings.items() if pair[0] in by and pair[1] in by}
    index = _index(by[name] for by in both.values() for name in pair)
    size = len(index)
    features = np.zeros((len(both), 2 + 2 * size))
    for row, by in zip(features, both.values(), strict=True):
        first, second = (index[by[name]] for name in pair)
        row[0], row[1] = 1.0, first == second
        row[2 + first] += 1.0
        row[2 + size + second] += 1.0

    def observe(sums: Floats) -> Floats:
        return _divide(sums[:, 1], sums[:, 0])

    def combine(sums: Floats) -> Floats:
        products = sums[:, 2 : 2 + size] * sums[:, 2 + size :]
        return _beyond(observe(sums), _divide(products.sum(1), sums[:, 0] ** 2))

    name = f"Cohen's kappa, {pair[0]} and {pair[1]}"
    return _measure(name, both, _Sums(features, combine, observe), clusters, 2)


def fleiss(ratings: Ratings, clusters: Mapping[Hashable, str]) -> Agreement:
    """Fleiss's kappa (1971), over the items that have the commonest number of judgements.

    The coefficient is defined for one number of judgements an item; which items that leaves out
    is in the note.
    """
    sizes = Counter(len(by) for by in ratings.values() if len(by) > 1)
    most = max(sizes, key=lambda size: (sizes[size], size), default=2)
    chosen = {item: by for item, by in ratings.items() if len(by) == most}
    counts = _count(chosen)
    agreeing = (counts * (counts - 1)).sum(1, keepdims=True) / (most * (most - 1))
    features = np.hstack([np.ones((len(chosen), 1)), agreeing, counts])

    def observe(sums: Floats) -> Floats:
        return _divide(sums[:, 1], sums[:, 0])

    def combine(sums: Floats) -> Floats:
        shares = _divide(sums[:, 2:], most * sums[:, :1])
        return _beyond(observe(sums), (shares**2).sum(1))

    left = sum(sizes.values()) - len(chosen)
    note = f"{left} items with another number of judgements than {most} left out" if left else ""
    return _measure("Fleiss's kappa", chosen, _Sums(features, combine, observe), clusters, 0, note)


def alpha(ratings: Ratings, clusters: Mapping[Hashable, str]) -> Agreement:
    """Krippendorff's alpha for categories (2011), over all items that two or more judged."""
    paired = {item: by for item, by in ratings.items() if len(by) > 1}
    counts = _count(paired)
    sizes = counts.sum(1, keepdims=True)
    disagreeing = _divide((counts * (sizes - counts)).sum(1, keepdims=True), sizes - 1)
    features = np.hstack([sizes, disagreeing, counts])

    def observe(sums: Floats) -> Floats:
        return 1.0 - _divide(sums[:, 1], sums[:, 0])

    def combine(sums: Floats) -> Floats:
        total, values = sums[:, 0], sums[:, 2:]
        by_chance = _divide((values * (values - 1)).sum(1), total * (total - 1))
        return _beyond(observe(sums), by_chance)

    return _measure("Krippendorff's alpha", paired, _Sums(features, combine, observe), clusters, 0)


def agreements(ratings: Ratings, clusters: Mapping[Hashable, str]) -> list[Agreement]:
    """All that can be said: alpha, Fleiss's kappa, and Cohen's for every pair with shared items."""
    names = sorted({name for by in ratings.values() for name in by})
    pairs = [cohen(ratings, pair, clusters) for pair in combinations(names, 2)]
    return [alpha(ratings, clusters), fleiss(ratings, clusters), *(p for p in pairs if p.items)]


def _index(categories: Iterable[str]) -> dict[str, int]:
    index: dict[str, int] = {}
    for category in categories:
        index.setdefault(category, len(index))
    return index


def _count(ratings: Ratings) -> Floats:
    """Items × categories: how many people chose it."""
    index = _index(category for by in ratings.values() for category in by.values())
    counts = np.zeros((len(ratings), len(index)))
    for row, by in zip(counts, ratings.values(), strict=True):
        for category in by.values():
            row[index[category]] += 1.0
    return counts


def _divide(above: Floats, below: Floats) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(below > 0, above / below, np.nan)


def _beyond(observed: Floats, expected: Floats) -> Floats:
    """The share of the way from chance to full agreement; NaN where chance alone is full."""
    room = 1.0 - expected
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(room > 1e-12, (observed - expected) / room, np.nan)


def _measure(
    name: str,
    ratings: Ratings,
    sums: _Sums,
    clusters: Mapping[Hashable, str],
    num_annotators: int,
    note: str = "",
) -> Agreement:
    annotators = num_annotators or len({who for by in ratings.values() for who in by})
    if not ratings:
        return Agreement(name, None, None, None, 0, 0, annotators, "no item with two judgements")
    index = _index(clusters[item] for item in ratings)
    by_cluster = np.zeros((len(index), sums.features.shape[1]))
    np.add.at(by_cluster, [index[clusters[item]] for item in ratings], sums.features)
    whole = by_cluster.sum(0, keepdims=True)
    value, observed = float(sums.combine(whole)[0]), float(sums.observe(whole)[0])
    notes = [note] if note else []
    ci95 = None
    if np.isnan(value):
        notes.append("one category was used for everything: nothing to tell from chance")
    elif len(index) < 2:
        notes.append("no interval from one cluster")
    else:
        ci95 = _interval(by_cluster, sums.combine)
        if observed == 1.0:
            notes.append(f"no disagreement seen; up to {_rule_of_three(len(index))} may be unseen")
        elif len(index) < FEW_CLUSTERS:
            notes.append(f"with caution: below {FEW_CLUSTERS} clusters it tends to be too narrow")
    return Agreement(
        name,
        None if np.isnan(value) else value,
        ci95,
        observed,
        len(ratings),
        len(index),
        annotators,
        "; ".join(notes),
    )


def _rule_of_three(clusters: int) -> str:
    """The 95 % upper bound of a rate of which none of `clusters` draws showed any."""
    return f"{min(1.0, 3 / clusters):.0%} of clusters"


def _interval(by_cluster: Floats, combine: Callable[[Floats], Floats]) -> tuple[float, float]:
    random = np.random.default_rng(0)
    num = len(by_cluster)
    values: list[Floats] = []
    for _ in range(NUM_DRAWS // 100):
        weights = random.multinomial(num, np.full(num, 1 / num), size=100).astype(np.float64)
        values.append(combine(weights @ by_cluster))
    drawn = np.concatenate(values)
    drawn = drawn[~np.isnan(drawn)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)
