"""The statistics of before and after: paired differences, an interval, a p value, a verdict.

Pure arithmetic on scores. What is asked and how answers are scored is for `suite` and `scorers`;
the arithmetic of chance is `chance`'s, and how the figures look is for `report`.

The unit of chance is the cluster (a fact, a document), not the question: ten questions about one
fact rise and fall together, and an interval that counts them as ten is far too narrow (at an
intra-cluster correlation of 0.3, thirty clusters of ten give 29 % false verdicts instead of 5 %).
So every figure is a mean of cluster means: each group counts alike, however many questions it has.
An interval around the mean over questions would be too narrow as soon as a few groups are large
(20 % false verdicts in simulation; LAB.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from timechat.evals.figures import TURNED, is_share, write_amount
from timechat.evals.statistics.chance import (
    LEVEL,
    Floats,
    cluster_means,
    flip_signs,
    holm,
    interval,
    mcnemar,
    standard_error,
)
from timechat.evals.statistics.power import MIN_CLUSTERS, MIN_ITEMS, minimal_detectable_effect
from timechat.records import Kept, Measure, Score, Verdict

MAX_PRIMARY = 3
"""More measures than this cannot be named as the ones that decide."""


@dataclass(frozen=True, slots=True)
class _Pairs:
    """Values per item in one order, and for each item the index of its cluster."""

    before: Floats
    after: Floats
    cluster: NDArray[np.intp]

    @property
    def is_binary(self) -> bool:
        values = np.concatenate([self.before, self.after])
        return bool(np.isin(values, (0.0, 1.0)).all())


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
    is of no difference at all: McNemar's where every answer is right or wrong and every question
    its own cluster, else that of sign flips. A gain needs the interval and the p value both;
    retention is judged by the interval alone. Scores that cannot be paired raise ValueError.
    """
    if kind == "retention" and (margin is None or not margin >= 0):
        raise ValueError(f"retention needs a margin of at least 0, not {margin}")
    if kind == "gain" and margin is not None:
        raise ValueError("a margin belongs to retention; a gain is measured against zero")
    pairs = _pair(before, after, sign=1.0 if higher_is_better else -1.0)
    differences = pairs.after - pairs.before
    means = cluster_means(differences, pairs.cluster)
    n, clusters = len(differences), len(means)
    mean, error = float(means.mean()), standard_error(means)
    ci95 = interval(mean, error, clusters)
    p_value, changed = _p_value(pairs, means, seed)
    if kind == "gain":
        verdict = judge_gain(ci95, n, clusters, p_value)
    else:
        verdict = judge_retention(ci95, n, clusters, margin or 0.0)
    notes = [] if margin is None else [_write_margin(margin, unit)]
    notes += _cautions(n, clusters)
    if verdict in ("inconclusive", "undecided") and 0 < error < math.inf:
        detectable = minimal_detectable_effect(error * math.sqrt(clusters), clusters)
        notes.append(f"smallest change found reliably: {_write_size(detectable, unit)}")
    notes += changed
    notes += _note_sizes(pairs, unit)
    if not higher_is_better:
        notes.append(TURNED)
    return Measure(
        name=name,
        before=float(cluster_means(pairs.before, pairs.cluster).mean()),
        after=float(cluster_means(pairs.after, pairs.cluster).mean()),
        difference=mean,
        ci95=ci95,
        n=n,
        clusters=clusters,
        verdict=verdict,
        unit=unit,
        p_value=p_value,
        note="; ".join(notes),
    )


def correct(primary: Sequence[Measure]) -> list[Measure]:
    """The measures that decide, their p values corrected for being several (Holm 1979).

    One whose corrected p is above 5 % loses its claim. Raises ValueError for more than three.
    """
    if len(primary) > MAX_PRIMARY:
        raise ValueError(f"{len(primary)} primary measures: name at most {MAX_PRIMARY}")
    out: list[Measure] = []
    values = [1.0 if m.p_value is None else m.p_value for m in primary]
    for measure, adjusted in zip(primary, holm(values), strict=True):
        verdict, note = measure.verdict, measure.note
        # Nothing changed at all: there is no claim to take back.
        claims = verdict in ("improved", "not_improved") and measure.ci95 != (0.0, 0.0)
        if claims and adjusted > LEVEL:
            verdict = "inconclusive"
            added = f"p {adjusted:.2g} after Holm's correction over {len(primary)} measures"
            note = "; ".join(filter(None, (note, added)))
        out.append(replace(measure, verdict=verdict, note=note, p_adjusted=adjusted))
    return out


def overall_verdict(task_measures: Sequence[Measure]) -> Verdict:
    """One verdict over the primary measures: all must have improved, and none may have failed."""
    verdicts = [measure.verdict for measure in task_measures]
    if "not_improved" in verdicts:
        return "not_improved"
    if verdicts and all(verdict == "improved" for verdict in verdicts):
        return "improved"
    return "inconclusive"


def change_groups(
    before: Sequence[Score], after: Sequence[Score], *, higher_is_better: bool = True
) -> dict[str, dict[str, float]]:
    """Per cluster its mean before, after, their difference and n: what `Report.groups` holds."""
    pairs = _pair(before, after, sign=1.0 if higher_is_better else -1.0)
    sizes = np.bincount(pairs.cluster)
    means_before = cluster_means(pairs.before, pairs.cluster)
    means_after = cluster_means(pairs.after, pairs.cluster)
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


def judge_gain(ci95: tuple[float, float], n: int, clusters: int, p_value: float = 0.0) -> Verdict:
    """The interval against zero; where its end and the p value disagree, neither is believed."""
    if n < MIN_ITEMS or clusters < MIN_CLUSTERS:
        return "inconclusive"
    if ci95 == (0.0, 0.0):
        return "not_improved"
    if p_value > LEVEL:
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


def _p_value(pairs: _Pairs, means: Floats, seed: int) -> tuple[float, list[str]]:
    """The p value that fits the scores, and for right or wrong answers how many changed."""
    if not pairs.is_binary:
        return flip_signs(means, seed), []
    better = int(np.count_nonzero(pairs.after > pairs.before))
    worse = int(np.count_nonzero(pairs.after < pairs.before))
    told = f"{better} questions better, {worse} worse"
    if len(means) == len(pairs.before):
        return mcnemar(better, worse), [f"{told} (McNemar exact)"]
    return flip_signs(means, seed), [told]


def _note_sizes(pairs: _Pairs, unit: str) -> list[str]:
    """What every question counting alike would give, where groups are of unequal size."""
    if np.ptp(np.bincount(pairs.cluster)) == 0:
        return []
    plain = float((pairs.after - pairs.before).mean())
    return [f"each group counts alike; over single questions {_write_signed(plain, unit)}"]


def _cautions(n: int, clusters: int) -> list[str]:
    if n >= MIN_ITEMS and clusters >= MIN_CLUSTERS:
        return []
    return [
        f"{n} items in {clusters} clusters: no claim below {MIN_ITEMS} items or "
        f"{MIN_CLUSTERS} clusters"
    ]


def _write_margin(margin: float, unit: str) -> str:
    return f"margin {_write_size(margin, unit)}"


def _write_size(size: float, unit: str) -> str:
    """A size without its sign; one decimal of a point, two digits of anything else."""
    if is_share(unit):
        return write_amount(size, unit, 1).removeprefix("+").replace(".0 ", " ")
    return f"{size:.2g} {unit}"


def _write_signed(size: float, unit: str) -> str:
    return write_amount(size, unit, 1) if is_share(unit) else f"{size:+.2g} {unit}".rstrip()
