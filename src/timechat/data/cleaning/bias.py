"""Whether one label has other rows than another: the bias table, and what evens it out."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int64]
# As many labels as anybody reads in a table; the others are counted together.
SHOWN_LABELS = 30
# Answers are labels when there are so few of them to so many rows.
MAX_LABEL_SHARE = 0.1


def is_labelled(labels: Numbers) -> bool:
    """Whether the answers of these rows are labels: short, and few different ones."""
    if not len(labels) or (labels < 0).mean() > 0.05:
        return False
    different = len(np.unique(labels[labels >= 0]))
    return 2 <= different <= max(2, MAX_LABEL_SHARE * len(labels))


def bias_table(
    labels: Numbers, names: Sequence[str], words: Numbers, others: Mapping[str, Sequence[str]]
) -> list[dict[str, Any]]:
    """Each label with its rows, their share and median length in words, and how it spreads over
    the `others` (source, language); the most frequent labels first."""
    counts = Counter(labels.tolist())
    table: list[dict[str, Any]] = []
    for label, count in counts.most_common(SHOWN_LABELS):
        mine = np.flatnonzero(labels == label)
        line: dict[str, Any] = {
            "label": names[label] if label >= 0 else "",
            "rows": count,
            "share": round(count / len(labels), 4),
            "median_words": float(np.median(words[mine])),
        }
        for what, values in others.items():
            line[what] = dict(Counter(values[i] for i in mine.tolist()).most_common(5))
        table.append(line)
    if len(counts) > SHOWN_LABELS:
        rest = len(labels) - sum(line["rows"] for line in table)
        table.append({"label": f"{len(counts) - SHOWN_LABELS} more labels", "rows": rest})
    return table


def sample_evenly(classes: Numbers, marks: NDArray[np.uint64], seed: int) -> list[int]:
    """The places to leave out so that every class has as many rows as the smallest: drawn by the
    seed and the rows' contents."""
    counts = Counter(classes.tolist())
    least = min(counts.values(), default=0)
    left_out: list[int] = []
    for value, count in counts.items():
        if count == least:
            continue
        mine = np.flatnonzero(classes == value).tolist()
        mine.sort(key=lambda i: hashlib.sha256(f"{seed}:{int(marks[i])}".encode()).digest())
        left_out += mine[least:]
    return sorted(left_out)


def weights_evenly(classes: Numbers) -> dict[int, float]:
    """A weight for each class with which all classes weigh the same; the smallest has 1."""
    counts = Counter(classes.tolist())
    least = min(counts.values(), default=0)
    return {value: least / count for value, count in counts.items()}
