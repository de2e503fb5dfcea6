"""What `prepare` leaves in its folder: the rows of each split, and the card that accounts for all.

The order of things is `prepare`'s; which row goes where was decided by `sorting`.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from timechat.conversation import Conversation
from timechat.data.files.prose import as_question
from timechat.recipe import Data
from timechat.records import DataCard
from timechat.stages.preparing.intake import Intake, Pool
from timechat.stages.preparing.sorting import Sorted
from timechat.store.files import append_rows, sha256

SPLITS = ("train", "validation", "test")


@dataclass(slots=True)
class Counts:
    """What was written: rows and clusters of each split, rows of each file, tokens in words."""

    rows: dict[str, int]
    groups: dict[str, int]
    kept: Counter[tuple[str, str]]
    words: dict[str, int]


def write_rows(folder: Path, pools: dict[str, Pool], found: Sorted) -> Counts:
    """Every row that is left to the file of its split."""
    clusters: dict[str, set[int]] = {name: set() for name in SPLITS}
    rows: Counter[str] = Counter()
    kept: Counter[tuple[str, str]] = Counter()
    words: list[int] = []

    def split_rows(wanted: str) -> Iterator[Conversation]:
        for name in SPLITS:
            pool = pools[name]
            for number, row in pool.rows():
                side = SPLITS[found.sides[number]] if name == "train" else name
                if side != wanted:
                    continue
                rows[side] += 1
                kept[name, pool.files[pool.file[number]]] += 1
                clusters[side].add(hash(row.cluster))
                words.append(pool.words[number])
                yield _final(row, number, side, found)

    for name in SPLITS:
        append_rows(folder / f"{name}.jsonl", (row.to_dict() for row in split_rows(name)))
    return Counts(
        {name: rows[name] for name in SPLITS},
        {name: len(clusters[name]) for name in SPLITS},
        kept,
        _quantiles(words),
    )


def _final(row: Conversation, number: int, side: str, found: Sorted) -> Conversation:
    """The row as its split needs it: weighed for training, asked where it is a held-out text."""
    if side == "test" and row.is_text:
        return as_question(row)
    if side == "train" and found.weights:
        weight = found.weights[int(found.classes[number])]
        return row.with_messages(
            tuple(
                replace(m, weight=round(m.weight * weight, 6)) if m.role == "assistant" else m
                for m in row.messages
            )
        )
    return row


def make_card(
    data: Data,
    folder: Path,
    pools: dict[str, Pool],
    intake: Intake,
    found: Sorted,
    counts: Counts,
) -> DataCard:
    for place, key in intake.keys.items():
        notes, kept = intake.sources[key], counts.kept[place]
        notes |= {"kept": kept, "dropped": notes["rows"] - kept}
    card = DataCard(
        rows_in=intake.rows_in,
        rows_kept=sum(counts.rows.values()),
        rows_dropped=intake.reasons.total(),
        reasons=_sorted(intake.reasons),
        edited=_sorted(intake.edited),
        splits=counts.rows,
        groups=counts.groups,
        overlap=found.overlap,
        sources=intake.sources,
        digest=digest(folder),
        seed=data.seed,
        system=data.system,
        found=_found(intake),
        words=counts.words,
        languages=_languages(pools.values()),
        near={"rows": found.near_rows, "clusters": found.clusters},
        shared_answers=found.shared_answers,
        general_overlap=found.general,
        bias=found.bias,
    )
    assert card.closes, "a row was neither kept nor dropped"
    return card


def _found(intake: Intake) -> dict[str, dict[str, Any]]:
    """What was only reported: counts, and the first places."""
    return {
        reason: {**_sorted(counts), "first": intake.places[reason]}
        for reason, counts in intake.found.items()
    }


def _languages(pools: Iterable[Pool]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for pool in pools:
        names = list(pool.language.names)
        counts.update(names[n] for n in pool.language.numbers if n >= 0)
    return _sorted(counts)


def _quantiles(words: list[int]) -> dict[str, int]:
    """How long the rows are, in words: the median, and how long the longest are."""
    if not words:
        return {}
    shares = {"median": 0.5, "p90": 0.9, "p99": 0.99, "longest": 1.0}
    return {name: int(np.quantile(words, share)) for name, share in shares.items()}


def _sorted(counts: Counter[str]) -> dict[str, int]:
    return dict(counts.most_common())


def digest(folder: Path) -> str:
    """One SHA-256 for the three split files: of their names and their own SHA-256."""
    parts = {name: sha256(folder / f"{name}.jsonl") for name in SPLITS}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
