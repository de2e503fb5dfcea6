"""In what the better answers were better: the ticks that people gave with their picks.

A tick is a share like any other, so it gets the statistics of the measures: for each question, how
many of those who chose ticked it for the old answer and for the new one. It explains a verdict and
is none: four more measures that decide would make each of them weaker.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from timechat.evals.statistics.compare import compare
from timechat.ledger.judging import TICKS, Item, Judgement
from timechat.records import Score

SCORER = "ticked_by_people/1"


def weigh_ticks(
    picked: Sequence[tuple[Item, Sequence[Judgement]]], clusters: Mapping[str, str]
) -> list[dict[str, Any]]:
    """One entry a tick: its name, how often each side got it, and the paired difference; empty
    where nobody was asked for ticks. `clusters` is by the items' row ids."""
    asked = [
        (item, answered)
        for item, said in picked
        if (answered := [j for j in said if j.ticks is not None])
    ]
    found: list[dict[str, Any]] = []
    for tick in TICKS if asked else ():
        sides = [
            [
                Score(item.row_id, clusters[item.row_id], _share(said, verdict, tick), SCORER)
                for item, said in asked
            ]
            for verdict in ("first", "second")
        ]
        measure = compare(f"chosen as {tick}", sides[0], sides[1], kind="gain", unit="share")
        counts = [sum(_has(j, verdict, tick) for _, said in asked for j in said)
                  for verdict in ("first", "second")]  # fmt: skip
        found.append({"tick": tick, "old": counts[0], "new": counts[1], "measure": asdict(measure)})
    return found


def count_by_person(said: Sequence[Judgement]) -> dict[str, dict[str, Any]]:
    """Who chose how often, how many of those times with ticks asked for, and what they ticked."""
    found: dict[str, dict[str, Any]] = {}
    for name in sorted({j.annotator for j in said}):
        mine = [j for j in said if j.annotator == name]
        ticks = Counter(tick for j in mine for tick in j.ticks or ())
        found[name] = {
            "picks": len(mine),
            "asked_for_ticks": sum(j.ticks is not None for j in mine),
            "ticks": {tick: ticks[tick] for tick in TICKS if ticks[tick]},
        }
    return found


def tell_ticks(weighed: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence for the report's findings; none where nothing was ticked."""
    if not any(one["old"] or one["new"] for one in weighed):
        return []
    parts = [
        f"{one['tick']} {one['measure']['after']:.0%} against {one['measure']['before']:.0%}"
        for one in weighed
    ]
    return [f"people chose the new answer, against the old one, as {', '.join(parts)}"]


def _share(said: Sequence[Judgement], verdict: str, tick: str) -> float:
    return sum(_has(j, verdict, tick) for j in said) / len(said)


def _has(judgement: Judgement, verdict: str, tick: str) -> bool:
    return judgement.verdict == verdict and tick in (judgement.ticks or ())
