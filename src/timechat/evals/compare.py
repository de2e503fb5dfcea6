"""The statistics of before and after: paired differences, an interval, a p value, a verdict.

Pure arithmetic on scores. What is asked and how answers are scored is for `suite` and `scorers`;
how the figures look is for `report`.

The unit of chance is the cluster (a fact, a document), not the question: ten questions about one
fact rise and fall together, and an interval that counts them as ten is far too narrow (at an
intra-cluster correlation of 0.3, thirty clusters of ten give 29 % false verdicts instead of 5 %).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from timechat.evals.figures import is_share, write_amount
from timechat.records import Kept, Measure, Score, Verdict

MIN_ITEMS, MIN_CLUSTERS = 20, 5
"""Below either there is no verdict."""
SOUND_ITEMS, SOUND_CLUSTERS = 100, 10
"""Below either the verdict stands with a caution: skewed differences make a nominal 95 % interval
cover 86 to 88 % at 20 items, 91 to 92 % at 100 (simulated; arXiv 2503.01747 warns alike)."""
EXACT_CLUSTERS = 16
NUM_DRAWS = 10_000
MDE_FACTOR = 2.80
"""z(0.975) + z(0.80): two-sided 5 % error, 80 % power."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class _Pairs:
    """Values per item in one order, and for each item the index of its cluster."""

    before: Floats
    after: Floats
    cluster: NDArray[np.intp]
    num_clusters: int

    def sum_clusters(self, values: Floats) -> Floats:
        sums = np.zeros(self.num_clusters)
        np.add.at(sums, self.cluster, values)
        return sums


def compare(
    name: str,
    before: Sequence[Score],
    after: Sequence[Score],
    *,
    kind: Literal["gain", "retention"],
    higher_is_better: bool = True,
    margin: float | None = None,
    unit: str = "",
    seed: int = 0,
) -> Measure:
    """Compare two sets of scores of the same items.

    Where lower is better (a loss), every value is turned in sign first, so that in each measure
    `difference` is `after - before` and positive is better. `margin` (not negative, in the
    scores' own unit) is the loss that retention may show and still count as kept. The p value
    is of no difference at all; the verdicts come from the interval. Scores that cannot be paired
    raise ValueError.
    """
    if kind == "retention" and (margin is None or not margin >= 0):
        raise ValueError(f"retention needs a margin of at least 0, not {margin}")
    if kind == "gain" and margin is not None:
        raise ValueError("a margin belongs to retention; a gain is measured against zero")
    pairs = _pair(before, after, sign=1.0 if higher_is_better else -1.0)
    differences = pairs.after - pairs.before
    mean = float(differences.mean())
    error = _standard_error(pairs, differences)
    ci95 = _interval(mean, error, pairs.num_clusters)
    n, clusters = len(differences), pairs.num_clusters
    if kind == "gain":
        verdict = judge_gain(ci95, n, clusters)
    else:
        verdict = judge_retention(ci95, n, clusters, margin or 0.0)
    notes = [] if margin is None else [_write_margin(margin, unit)]
    notes += _cautions(n, clusters)
    if verdict in ("inconclusive", "undecided") and 0 < error < math.inf:
        detectable = minimal_detectable_effect(error * math.sqrt(clusters), clusters)
        notes.append(f"smallest change found reliably: {_write_size(detectable, unit)}")
    if not higher_is_better:
        notes.append("sign turned, so that higher is better")
    return Measure(
        name=name,
        before=float(pairs.before.mean()),
        after=float(pairs.after.mean()),
        difference=mean,
        ci95=ci95,
        n=n,
        clusters=clusters,
        verdict=verdict,
        unit=unit,
        p_value=_flip_signs(pairs.sum_clusters(differences), seed),
        note="; ".join(notes),
    )


def overall_verdict(task_measures: Sequence[Measure]) -> Verdict:
    """One verdict over the primary measures: all must have improved, and none may have failed."""
    verdicts = [measure.verdict for measure in task_measures]
    if "not_improved" in verdicts:
        return "not_improved"
    if verdicts and all(verdict == "improved" for verdict in verdicts):
        return "improved"
    return "inconclusive"


def minimal_detectable_effect(sd: float, clusters: int) -> float:
    """The true difference that is found with 80 % power at 5 % error: 2.80 sd / sqrt(clusters).

    `sd` is the standard deviation of the differences of cluster means.
    """
    if clusters < 1:
        raise ValueError(f"clusters must be at least 1, not {clusters}")
    return MDE_FACTOR * sd / math.sqrt(clusters)


def change_groups(
    before: Sequence[Score], after: Sequence[Score], *, higher_is_better: bool = True
) -> dict[str, dict[str, float]]:
    """Per cluster its mean before, after, their difference and n: what `Report.groups` holds."""
    pairs = _pair(before, after, sign=1.0 if higher_is_better else -1.0)
    sizes = pairs.sum_clusters(np.ones_like(pairs.before))
    means_before = pairs.sum_clusters(pairs.before) / sizes
    means_after = pairs.sum_clusters(pairs.after) / sizes
    names = list(dict.fromkeys(score.cluster for score in before))
    return {
        group: {
            "before": float(means_before[i]),
            "after": float(means_after[i]),
            "difference": float(means_after[i] - means_before[i]),
            "n": float(sizes[i]),
        }
        for i, group in enumerate(names)
    }


def judge_gain(ci95: tuple[float, float], n: int, clusters: int) -> Verdict:
    if n < MIN_ITEMS or clusters < MIN_CLUSTERS:
        return "inconclusive"
    if ci95[0] > 0:
        return "improved"
    return "not_improved" if ci95[1] <= 0 else "inconclusive"


def judge_retention(ci95: tuple[float, float], n: int, clusters: int, margin: float) -> Kept:
    """Non-inferiority: the interval against the margin, never a large p value."""
    if n < MIN_ITEMS or clusters < MIN_CLUSTERS:
        return "undecided"
    if ci95[0] > -margin:
        return "kept"
    return "lost" if ci95[1] < -margin else "undecided"


def read_margin(measure: Measure) -> str:
    """The clause of a retention measure's note that names its margin, or an empty string."""
    first = measure.note.split("; ")[0]
    return first if first.startswith("margin ") else ""


def _pair(before: Sequence[Score], after: Sequence[Score], *, sign: float) -> _Pairs:
    old, new = _by_item(before, "before"), _by_item(after, "after")
    for item in old:
        if item not in new:
            raise ValueError(f"item {item!r} was scored before and is missing after")
    for item in new:
        if item not in old:
            raise ValueError(f"item {item!r} was scored after and is missing before")
    if not old:
        raise ValueError("no items to compare")
    index: dict[str, int] = {}
    for item, score in old.items():
        other = new[item]
        if (score.cluster, score.scorer) != (other.cluster, other.scorer):
            raise ValueError(
                f"item {item!r} changed between before and after: cluster {score.cluster!r} and "
                f"{other.cluster!r}, scorer {score.scorer!r} and {other.scorer!r}"
            )
        index.setdefault(score.cluster, len(index))
    return _Pairs(
        before=np.array([sign * score.value for score in old.values()], dtype=np.float64),
        after=np.array([sign * new[item].value for item in old], dtype=np.float64),
        cluster=np.array([index[score.cluster] for score in old.values()], dtype=np.intp),
        num_clusters=len(index),
    )


def _by_item(scores: Sequence[Score], side: str) -> Mapping[str, Score]:
    out: dict[str, Score] = {}
    for score in scores:
        if score.item in out:
            raise ValueError(f"item {score.item!r} was scored twice {side}")
        if not math.isfinite(score.value):
            raise ValueError(f"item {score.item!r} has the score {score.value} {side}")
        out[score.item] = score
    return out


def _standard_error(pairs: _Pairs, differences: Floats) -> float:
    """The cluster-robust standard error of the mean over items (CR1 of an intercept alone).

    se² = C/(C-1) · sum_c (sum_{i in c} (d_i - mean))² / n², the linearised variance of a ratio
    (Cochran, Sampling Techniques, 1977, section 9A). With one item a cluster it is s²/n, with
    equal clusters that of cluster means.
    """
    if np.ptp(differences) == 0 and differences[0] == 0:
        return 0.0
    clusters = pairs.num_clusters
    if clusters < 2:
        return math.inf
    residuals = pairs.sum_clusters(differences - differences.mean())
    variance = clusters / (clusters - 1) * float(residuals @ residuals)
    return math.sqrt(variance) / len(differences)


def _interval(mean: float, error: float, clusters: int) -> tuple[float, float]:
    """Student's t on clusters - 1 degrees of freedom, centred on the mean over items."""
    if error == 0.0 or math.isinf(error):
        return mean - error, mean + error
    reach = float(stats.t.ppf(0.975, clusters - 1)) * error
    return mean - reach, mean + reach


def _flip_signs(sums: Floats, seed: int) -> float:
    """Two-sided p of the sign-flip permutation test on cluster sums.

    Exact up to 16 clusters; above, 10,000 draws with the observed one counted among them, so that
    p is never 0 (Phipson and Smyth 2010).
    """
    num = len(sums)
    # The tolerance lets sums that are equal but for rounding count as ties.
    bound = abs(float(sums.sum())) - 1e-9 * float(np.abs(sums).sum())
    if num <= EXACT_CLUSTERS:
        bits = (np.arange(2**num)[:, None] >> np.arange(num)) & 1
        flipped = (1.0 - 2.0 * bits) @ sums
        return float(np.mean(np.abs(flipped) >= bound))
    random = np.random.default_rng(seed)
    extreme, chunk = 0, 1_000
    for _ in range(NUM_DRAWS // chunk):
        signs = random.integers(0, 2, size=(chunk, num), dtype=np.int8) * 2.0 - 1.0
        extreme += int(np.count_nonzero(np.abs(signs @ sums) >= bound))
    return (1 + extreme) / (1 + NUM_DRAWS)


def _cautions(n: int, clusters: int) -> list[str]:
    counts = f"{n} items in {clusters} clusters"
    if n < MIN_ITEMS or clusters < MIN_CLUSTERS:
        return [f"{counts}: no verdict below {MIN_ITEMS} items or {MIN_CLUSTERS} clusters"]
    if n < SOUND_ITEMS or clusters < SOUND_CLUSTERS:
        return [
            f"{counts}: with caution, below {SOUND_ITEMS} items or {SOUND_CLUSTERS} clusters "
            "an interval tends to be too narrow"
        ]
    return []


def _write_margin(margin: float, unit: str) -> str:
    return f"margin {_write_size(margin, unit)}"


def _write_size(size: float, unit: str) -> str:
    """A size without its sign; one decimal of a point, two digits of anything else."""
    if is_share(unit):
        return write_amount(size, unit, 1).removeprefix("+").replace(".0 ", " ")
    return f"{size:.2g} {unit}"
