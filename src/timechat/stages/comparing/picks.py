"""What people preferred, before or after, as one more measure of a proof.

People choose between a run's answers before and after in the annotation queue, unnamed and in an
order that a coin decides; their picks lie in the ledger. Here they become a share of wins with the
same statistics as everything else, and so does what they ticked (`ticks`). What they said is
turned into preference pairs by `collect`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from timechat.evals.figures import write_interval
from timechat.evals.questions.suite import Task
from timechat.evals.statistics.compare import compare
from timechat.ledger.database import LEDGER_FILE
from timechat.ledger.judging import Item, Judgement
from timechat.records import Score
from timechat.stages.annotating.annotate import measure_agreement, reopen
from timechat.stages.comparing.ticks import count_by_person, tell_ticks, weigh_ticks

SCORER = "picked_by_people/1"
SHARES = {"first": 0.0, "second": 1.0, "tie": 0.5, "neither": 0.5}
"""What a verdict gives the new answer, which is an item's second."""


def weigh_picks(
    folder: Path, task: Task, before: Sequence[str], after: Sequence[str]
) -> tuple[dict[str, Any], list[str]]:
    """What people chose of these very answers, for the report's details and its findings; empty
    where `folder` holds no picks of them."""
    if not (folder / LEDGER_FILE).is_file():
        return {}, []
    queue = reopen(folder)
    shown = {q.id: (old, new) for q, old, new in zip(task.questions, before, after, strict=True)}
    said = queue.by_item()
    picked = [
        (item, chosen)
        for item in queue.items()
        if _is_of(item, shown)
        and (chosen := [j for j in said.get(item.id, []) if j.verdict in SHARES])
    ]
    if not picked:
        return {}, []
    clusters = {q.id: q.cluster for q in task.questions}
    new = [
        Score(item.row_id, clusters[item.row_id], _share_of_wins(chosen), SCORER)
        for item, chosen in picked
    ]
    half = [Score(s.item, s.cluster, 0.5, SCORER) for s in new]
    measure = compare("people's share of wins", half, new, kind="gain", unit="share")
    all_picks = [j for _, chosen in picked for j in chosen]
    people = count_by_person(all_picks)
    ticks = weigh_ticks(picked, clusters)
    details: dict[str, Any] = {
        "measure": asdict(measure),
        "people": len(people),
        "picks": len(all_picks),
        "verdicts": dict(_count(said, {item.id for item, _ in picked})),
        "ticks": ticks,
        "by_person": people,
        "agreement": [asdict(found) for found in measure_agreement(queue)],
    }
    told = (
        f"{len(people)} {'person' if len(people) == 1 else 'people'} chose between the answers to "
        f"{measure.n} questions, unnamed and shuffled: the new ones win {measure.after:.0%} "
        f"({100 * measure.difference:+.0f} points from even {write_interval(measure)}, "
        f"{measure.verdict.replace('_', ' ')})"
    )
    return details, [told, *tell_ticks(ticks)]


def _is_of(item: Item, shown: dict[str, tuple[str, str]]) -> bool:
    """Picks of other answers, such as an earlier checkpoint's, say nothing of these."""
    texts = tuple(answer.text for answer in item.answers)
    return item.task == "choose" and shown.get(item.row_id) == texts


def _share_of_wins(chosen: Sequence[Judgement]) -> float:
    return sum(SHARES[j.verdict] for j in chosen) / len(chosen)


def _count(said: dict[int, list[Judgement]], items: set[int]) -> Counter[str]:
    return Counter(j.verdict for item in items for j in said.get(item, []))
