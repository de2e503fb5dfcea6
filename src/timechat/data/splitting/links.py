"""Rows that must not be parted, and rows that must not be on both sides.

Everything that `near` finds is judged here in one pass: among training rows it joins
clusters, between a training row and an evaluation row it is a twin. Which side a cluster goes to
is `split`'s; what happens to twins is the caller's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from timechat.data.splitting.minhash import Ints
from timechat.data.splitting.near import TURN, Askings, paired
from timechat.data.splitting.overlap import contained

# From here on rows that we split are kept together, and from there on rows that the user split
# are refused: a near question may still be another one, so the second is the stricter.
TOGETHER, REFUSED = 0.7, 0.8


@dataclass(frozen=True, slots=True)
class Twin:
    """A training row and an evaluation row (by number and side) that ask the same."""

    train: int
    side: int
    held_out: int
    how: str


@dataclass(frozen=True, slots=True)
class Related:
    """The cluster of every training row; pairs of near training rows, the later one first named;
    and the twins."""

    clusters: Ints
    pairs: list[tuple[int, int, float]]
    num_near: int
    twins: list[Twin]


class Links:
    """Rows joined in pairs, and the clusters that follow (union-find with path halving)."""

    def __init__(self, num_rows: int) -> None:
        self._parent = list(range(num_rows))

    def root(self, row: int) -> int:
        parent = self._parent
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    def join(self, one: int, other: int) -> None:
        one, other = self.root(one), self.root(other)
        # The smaller number leads, so that the outcome does not depend on the order of joining.
        self._parent[max(one, other)] = min(one, other)

    def labels(self) -> Ints:
        return np.fromiter(map(self.root, range(len(self._parent))), np.int64, len(self._parent))


def relate(
    num_rows: int, groups: Iterable[tuple[int, int]], askings: Askings, near: bool, keep: bool
) -> Related:
    """Clusters and twins of the `num_rows` training rows.

    `groups` joins pairs of rows beforehand. Rows that ask the same word for word are always
    joined, near ones when `near`; the pairs themselves are remembered when `keep`.
    """
    links = Links(num_rows)
    for one, other in groups:
        links.join(one, other)
    rows, kinds, sides = askings.rows(), askings.kinds(), askings.sides()
    pairs: list[tuple[int, int, float]] = []
    touched: set[int] = set()
    twins: list[Twin] = []

    def remember(one: int, other: int, similarity: float) -> None:
        first, second = sorted((int(rows[one]), int(rows[other])))
        if keep and first != second and TURN not in (kinds[one], kinds[other]):
            pairs.append((second, first, similarity))

    def twin(one: int, other: int, how: str) -> Twin:
        train, held = (one, other) if sides[one] == 0 else (other, one)
        return Twin(int(rows[train]), int(sides[held]), int(rows[held]), how)

    for one, other in askings.equal():
        links.join(int(rows[one]), int(rows[other]))
        remember(one, other, 1.0)
    twins += (twin(one, other, "word for word") for one, other in askings.equal_across())
    for one, other, similarity in askings.near(TOGETHER):
        both = paired(askings.same(one), askings.same(other))
        if sides[one] == sides[other] == 0:
            if near:
                touched.update((int(rows[one]), int(rows[other])))
                for a, b in both:
                    links.join(int(rows[a]), int(rows[b]))
                    remember(a, b, similarity)
        elif similarity >= REFUSED:
            twins += (twin(a, b, f"near, {similarity:.2f}") for a, b in both)
    twins += inside(askings)
    return Related(links.labels(), pairs, len(touched), twins)


def inside(askings: Askings) -> Iterator[Twin]:
    """Training and evaluation rows of which one's words stand in the other."""
    rows, sides = askings.rows(), askings.sides()
    for train, held, share in contained(askings):
        how = f"{share:.0%} of the words of one stand in the other"
        yield Twin(int(rows[train]), int(sides[held]), int(rows[held]), how)
