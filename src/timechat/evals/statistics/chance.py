"""What chance alone would do: an interval, permutation and McNemar p values, Holm's correction.

Pure arithmetic on arrays, against scipy and statsmodels in the tests. Which numbers are compared,
and what a verdict needs, is for `compare`; how many questions would be enough is for `power`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]

EXACT_CLUSTERS = 16
NUM_DRAWS = 10_000
LEVEL = 0.05


def cluster_means(values: Floats, cluster: NDArray[np.intp]) -> Floats:
    """The mean of each cluster's values; `cluster` numbers them from 0 without gaps."""
    return np.bincount(cluster, weights=values) / np.bincount(cluster)


def standard_error(means: Floats) -> float:
    """Of the mean of cluster means: s / sqrt(C). Zero where nothing changed at all."""
    if not means.any():
        return 0.0
    if len(means) < 2:
        return math.inf
    return float(means.std(ddof=1)) / math.sqrt(len(means))


def interval(mean: float, error: float, clusters: int) -> tuple[float, float]:
    """Student's t on C - 1 degrees of freedom, 95 %, two-sided."""
    if error == 0.0 or math.isinf(error):
        return mean - error, mean + error
    reach = float(stats.t.ppf(1 - LEVEL / 2, clusters - 1)) * error
    return mean - reach, mean + reach


def flip_signs(means: Floats, seed: int = 0) -> float:
    """Two-sided p of the sign-flip permutation test on cluster means.

    Exact up to 16 clusters; above, 10,000 draws with the observed one counted among them, so that
    p is never 0 (Phipson and Smyth 2010).
    """
    num = len(means)
    # The tolerance lets sums that are equal but for rounding count as ties.
    bound = abs(float(means.sum())) - 1e-9 * float(np.abs(means).sum())
    if num <= EXACT_CLUSTERS:
        bits = (np.arange(2**num)[:, None] >> np.arange(num)) & 1
        flipped = (1.0 - 2.0 * bits) @ means
        return float(np.mean(np.abs(flipped) >= bound))
    random = np.random.default_rng(seed)
    extreme, chunk = 0, 1_000
    for _ in range(NUM_DRAWS // chunk):
        signs = random.integers(0, 2, size=(chunk, num), dtype=np.int8) * 2.0 - 1.0
        extreme += int(np.count_nonzero(np.abs(signs @ means) >= bound))
    return (1 + extreme) / (1 + NUM_DRAWS)


def mcnemar(better: int, worse: int) -> float:
    """The exact two-sided p of McNemar's test: a fair coin over the questions that changed."""
    if better + worse == 0:
        return 1.0
    return float(stats.binomtest(better, better + worse).pvalue)


def holm(values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (1979), each p in its own place."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    adjusted = [0.0] * len(values)
    reached = 0.0
    for rank, i in enumerate(order):
        reached = max(reached, min(1.0, (len(values) - rank) * values[i]))
        adjusted[i] = reached
    return adjusted
