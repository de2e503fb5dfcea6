"""How many questions are enough, worked out before anything is asked.

The formula is that of the paired t test on cluster means; the tests hold it against statsmodels
and against simulation. What the questions are is for `suite`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

from scipy import stats
from scipy.optimize import brentq

from timechat.evals.statistics.chance import LEVEL

POWER = 0.80
MIN_ITEMS, MIN_CLUSTERS = 100, 10
"""Below either there is no verdict. Skewed differences make a nominal 95 % interval cover 86 to
88 % at 20 items and 91 to 92 % at 100 (simulated; arXiv 2503.01747 warns alike)."""

# What is assumed of questions that nobody has asked yet: a fifth change between right and wrong,
# and those of one group move together as questions of one document usually do.
CHANGING = 0.20
TOGETHER = 0.30
WORTHWHILE = 0.05


def power(effect: float, sd: float, clusters: int) -> float:
    """The chance that a two-sided t test at 5 % finds a true mean difference of `effect`.

    `sd` is the standard deviation of the differences of cluster means.
    """
    free = clusters - 1
    shift = effect * math.sqrt(clusters) / sd
    bound = float(stats.t.ppf(1 - LEVEL / 2, free))
    found = float(stats.nct.sf(bound, free, shift) + stats.nct.cdf(-bound, free, shift))
    # scipy's noncentral t gives up far beyond the bound, where there is no doubt left.
    return 1.0 if math.isnan(found) else found


def minimal_detectable_effect(sd: float, clusters: int) -> float:
    """The true difference that is found with 80 % power at 5 % error.

    2.80 sd / sqrt(clusters) for many clusters; the exact t makes it larger for few (3.21 at 10).
    """
    if clusters < 2:
        return math.inf
    if sd == 0:
        return 0.0
    gap = partial(_gap, sd=sd, clusters=clusters)
    factor = cast(float, brentq(gap, 2.0, 40.0, xtol=1e-10))
    return factor * sd / math.sqrt(clusters)


def _gap(factor: float, sd: float, clusters: int) -> float:
    return power(factor * sd / math.sqrt(clusters), sd, clusters) - POWER


@dataclass(frozen=True, slots=True)
class Foresight:
    """What a set of questions can show: `effect` is the smallest change found with 80 % power,
    `needed` how many questions of the same grouping would find `WORTHWHILE`."""

    n: int
    clusters: int
    effect: float
    needed: int

    @property
    def enough(self) -> bool:
        return self.n >= MIN_ITEMS and self.clusters >= MIN_CLUSTERS

    def write(self) -> str:
        """The sentence that is printed before the run."""
        groups = f" in {self.clusters} groups" if self.clusters != self.n else ""
        text = f"{self.n} held-out questions{groups}: "
        if not self.enough:
            return (
                text + f"no claim will be made below {MIN_ITEMS} questions and "
                f"{MIN_CLUSTERS} groups; the verdict will be inconclusive whatever happens"
            )
        return text + (
            f"a change of {100 * self.effect:.1f} points of answer score would be found with "
            f"{POWER:.0%} power, if {CHANGING:.0%} of the answers change between right and wrong; "
            f"{100 * WORTHWHILE:g} points would need about {self.needed:,} questions"
        )


def foresee(clusters: Sequence[str]) -> Foresight:
    """What the questions in these clusters (one name a question) can show of a share.

    The variance of a cluster mean of m questions is v (1 + (m - 1) r) / m: v the variance of a
    single difference, r how much a group moves together (Kish 1965). Groups count alike.
    """
    n = len(clusters)
    sizes: dict[str, int] = {}
    for name in clusters:
        sizes[name] = sizes.get(name, 0) + 1
    count = len(sizes)
    variances = [CHANGING * (1 + (m - 1) * TOGETHER) / m for m in sizes.values()]
    sd = math.sqrt(sum(variances) / max(1, count))
    effect = minimal_detectable_effect(sd, count)
    groups = max(2, math.ceil((2.8016 * sd / WORTHWHILE) ** 2))
    while power(WORTHWHILE, sd, groups) < POWER:
        groups += 1
    return Foresight(n, count, effect, math.ceil(groups * n / max(1, count)))
