"""Answers that are labels: accuracy, macro-F1 and the confusion table.

A set of questions is a labelling task when a few short references come again and again. An answer
that is none of the labels counts as wrong under `(other)`, in the table and in the figures.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from timechat.evals.scoring.scorers import normalize

OTHER = "(other)"
MAX_LABELS = 200
LEAST_REPEATS = 2.0
"""How often a label must come on average, or the references are answers and no labels."""


@dataclass(frozen=True, slots=True)
class Labelling:
    """One model's labels against the right ones. `confusion` counts (right, given)."""

    accuracy: float
    macro_f1: float
    confusion: dict[str, dict[str, int]]


def labels_of(references: Sequence[str]) -> list[str]:
    """The labels, most frequent first; empty where the references are no labels."""
    counts = Counter(reference.strip() for reference in references)
    short = all(len(label.split()) <= 6 for label in counts)
    repeated = len(references) >= LEAST_REPEATS * len(counts)
    if not short or not repeated or not 2 <= len(counts) <= MAX_LABELS:
        return []
    return [label for label, _ in counts.most_common()]


def label_scores(answers: Sequence[str], references: Sequence[str]) -> Labelling:
    """Macro-F1 is the plain mean over the labels that occur among the references."""
    labels = labels_of(references)
    # Each answer and label is normalised once: of two labels in the same words the first is meant.
    known = {_words(label): label for label in reversed(labels)}
    given = [known.get(_words(answer), OTHER) for answer in answers]
    right = [reference.strip() for reference in references]
    confusion: dict[str, dict[str, int]] = {}
    for want, got in zip(right, given, strict=True):
        row = confusion.setdefault(want, {})
        row[got] = row.get(got, 0) + 1
    said, wanted = Counter(given), Counter(right)
    hits = Counter(want for want, got in zip(right, given, strict=True) if want == got)
    f1 = [2 * hits[label] / (said[label] + wanted[label]) for label in labels]
    accuracy = sum(hits.values()) / len(right)
    return Labelling(accuracy, sum(f1) / len(f1) if f1 else 0.0, confusion)


def _words(text: str) -> tuple[str, ...]:
    """What `exact_match` compares: the words, or a text of signs alone as it stands."""
    return tuple(normalize(text)) or (text.strip(),)


def worst_mixups(table: dict[str, dict[str, int]], limit: int = 10) -> list[tuple[str, str, int]]:
    """The most frequent (right, given, count) that are wrong."""
    found = [(w, g, n) for w, row in table.items() for g, n in row.items() if w != g]
    return sorted(found, key=lambda entry: (-entry[2], entry[0], entry[1]))[:limit]
