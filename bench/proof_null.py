"""The proof of the proof: null comparisons that must stay without a verdict, and real effects.

A model is compared with itself, resampled: per question a chance to be right, drawn once per group
(intra-cluster correlation 0 to 0.5), from which both sides answer anew. Whatever differs is luck,
and `compare` may claim a change in at most 6.5 % of the comparisons. Then one side is truly better
by an effect the power formula says is found in 50, 80 and 95 of a hundred comparisons.

    python bench/proof_null.py            1,000 of each (about 3 minutes on two cores)
    python bench/proof_null.py --reps 200
    python bench/proof_null.py --reps 0 --power-reps 5000    power alone, to half a point
"""

from __future__ import annotations

import argparse
import json
import math
import time

import numpy as np

from timechat.evals.statistics.chance import Floats, cluster_means, interval, standard_error
from timechat.evals.statistics.compare import compare
from timechat.evals.statistics.power import power
from timechat.records import Score

SHAPES = ((30, 10), (100, 3), (10, 30), (300, 1))
CORRELATIONS = (0.0, 0.1, 0.3, 0.5)


def scores(values: Floats, cluster: Floats) -> list[Score]:
    return [
        Score(f"q{i}", f"g{c}", float(v), "simulated/1")
        for i, (v, c) in enumerate(zip(values, cluster, strict=True))
    ]


def verdict(before: Floats, after: Floats, cluster: Floats, seed: int) -> str:
    means = cluster_means(after - before, cluster)
    low, high = interval(float(means.mean()), standard_error(means), len(means))
    if low <= 0 <= high:  # no claim without the interval: the slow p value changes nothing
        return "inconclusive"
    pair = scores(before, cluster), scores(after, cluster)
    return compare("simulated", *pair, kind="gain", seed=seed).verdict


def likelihoods(
    random: np.random.Generator, clusters: int, sizes: Floats, icc: float, effect: float
) -> tuple[Floats, Floats, Floats]:
    """Two sides whose differences have variance 1, a share `icc` of it between groups."""
    cluster = np.repeat(np.arange(clusters), sizes)
    own = random.normal(0, math.sqrt((1 - icc) / 2), (2, len(cluster)))
    shared = random.normal(0, math.sqrt(icc / 2), (2, clusters))[:, cluster]
    before, after = own + shared
    return before, after + effect, cluster


def answers(
    random: np.random.Generator, clusters: int, sizes: Floats, icc: float
) -> tuple[Floats, Floats, Floats]:
    """Right or wrong: each side's group has its own chance, Beta with that correlation."""
    cluster = np.repeat(np.arange(clusters), sizes)
    if icc == 0:
        chance = np.full((2, clusters), 0.5)
    else:
        strength = (1 - icc) / icc
        chance = random.beta(0.5 * strength, 0.5 * strength, (2, clusters))
    before, after = (random.random((2, len(cluster))) < chance[:, cluster]).astype(float)
    return before, after, cluster


def group_sizes(random: np.random.Generator, clusters: int, each: int, uneven: bool) -> Floats:
    if not uneven:
        return np.full(clusters, each)
    drawn = 1 + np.floor(random.pareto(1.2, clusters) * each / 2).astype(int)
    return np.maximum(np.minimum(drawn, 40 * each), math.ceil(100 / clusters))


def null_table(reps: int) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for kind in ("likelihood", "right or wrong"):
        for clusters, each in SHAPES:
            for icc in CORRELATIONS if each > 1 else (0.0,):
                for uneven in (False, True) if each > 1 else (False,):
                    if not reps:
                        continue
                    random = np.random.default_rng([clusters, int(100 * icc), uneven])
                    false = 0
                    for i in range(reps):
                        sizes = group_sizes(random, clusters, each, uneven)
                        if kind == "likelihood":
                            drawn = likelihoods(random, clusters, sizes, icc, 0.0)
                        else:
                            drawn = answers(random, clusters, sizes, icc)
                        false += verdict(*drawn, seed=i) != "inconclusive"
                    shape = f"{clusters} x {'uneven' if uneven else each}"
                    rows.append(
                        {"scores": kind, "groups": shape, "icc": icc, "false": false / reps}
                    )
                    print(f"{kind:15} {shape:12} ICC {icc:.1f}  {false / reps:6.1%}", flush=True)
    return rows


def power_table(reps: int) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for clusters, each in SHAPES:
        icc = 0.3 if each > 1 else 0.0
        sd = math.sqrt(icc + (1 - icc) / each)
        for wanted in (0.5, 0.8, 0.95):
            low, high = 0.0, 10.0
            for _ in range(60):
                middle = (low + high) / 2
                low, high = (
                    (middle, high) if power(middle, sd, clusters) < wanted else (low, middle)
                )
            random = np.random.default_rng([clusters, int(100 * wanted)])
            sizes = np.full(clusters, each)
            found = sum(
                verdict(*likelihoods(random, clusters, sizes, icc, low), seed=i) == "improved"
                for i in range(reps)
            )
            shape = f"{clusters} x {each}"
            rows.append({"groups": shape, "formula": wanted, "found": found / reps})
            print(f"{shape:12} formula {wanted:.0%}  found {found / reps:6.1%}", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reps", type=int, default=1000)
    parser.add_argument("--power-reps", type=int, help="As --reps where left out.")
    given = parser.parse_args()
    reps = given.reps
    started = time.perf_counter()
    null, found = null_table(reps), power_table(given.power_reps or reps)
    false = [float(str(row["false"])) for row in null]
    summary = {
        "reps": reps,
        "worst_false": max(false, default=None),
        "mean_false": round(sum(false) / len(false), 4) if false else None,
        "worst_power_gap": max(
            abs(float(str(row["found"])) - float(str(row["formula"]))) for row in found
        ),
        "seconds": round(time.perf_counter() - started, 1),
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
