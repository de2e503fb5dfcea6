"""Whether the words of one question stand inside another: runs of eight words, in both directions.

This finds the question that was pasted into a longer prompt, which no similarity of the wholes
does. What is near as a whole is `near`'s, and what follows from either is `links`'.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator

from timechat.data.splitting.near import TURN, Askings

# Runs of eight words are what decontamination of evaluation sets commonly counts (8 to 13).
RUN = 8
# The share of one side's runs that stand in the other, and how many runs it must have to count:
# a stock phrase of eight words is no question.
CONTAINED, MIN_RUNS = 0.8, 5


def contained(askings: Askings) -> Iterator[tuple[int, int, float]]:
    """Pairs of a training and an evaluation entry of which one stands in the other, with the
    share of its runs that do."""
    sides, kinds = askings.sides(), askings.kinds()
    where: dict[int, list[int]] = {}
    sizes: dict[int, int] = {}
    for entry in range(len(askings)):
        if sides[entry] == 0 or kinds[entry] == TURN:
            continue
        runs = word_runs(askings.text(entry))
        sizes[entry] = len(runs)
        for run in runs:
            where.setdefault(run, []).append(entry)
    if not where:
        return
    for entry in range(len(askings)):
        if sides[entry] != 0 or kinds[entry] == TURN:
            continue
        runs = word_runs(askings.text(entry))
        shared = Counter(held for run in runs for held in where.get(run, ()))
        for held, count in shared.items():
            share = max(
                count / size if size >= MIN_RUNS else 0.0 for size in (sizes[held], len(runs))
            )
            if share >= CONTAINED:
                yield entry, held, share


def word_runs(text: str) -> set[int]:
    """The hashes of the runs of eight words in a folded text."""
    words = text.split()
    return {
        int.from_bytes(
            hashlib.blake2b(" ".join(words[i : i + RUN]).encode(), digest_size=8).digest(), "little"
        )
        for i in range(len(words) - RUN + 1)
    }
