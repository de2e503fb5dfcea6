"""Training, validation and test rows, so that nothing leaks from one to the other.

Clusters (`links`) stay on one side, and labels keep their shares where there are labels.
Which side follows from the seed and the rows' contents, not from their order.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from timechat.data.splitting.minhash import Ints
from timechat.errors import DataError

TRAIN, VALIDATION, TEST = 0, 1, 2
MIN_ROWS = 12
# Share of the rows, at least, at most. 400 test rows put about ±5 points around a share of one
# half (Wald, 95 %); validation only has to rank checkpoints, and what it holds is not learned.
VALIDATION_SIZE = (0.04, 4, 256)
TEST_SIZE = (0.10, 20, 400)

Sides = NDArray[np.int8]


def assign(
    clusters: Ints,
    marks: NDArray[np.uint64],
    labels: Ints | None,
    wants_validation: bool,
    wants_test: bool,
    seed: int,
) -> Sides:
    """The side of every row; training keeps at least half of them.

    `clusters` and `labels` number each row's cluster and label, `marks` are hashes of the rows'
    contents. Raises DataError with fewer than 12 rows, or when they all hang together.
    """
    num_rows = len(clusters)
    sides = np.zeros(num_rows, np.int8)
    if not (wants_validation or wants_test):
        return sides
    if num_rows < MIN_ROWS:
        raise DataError(
            f"{num_rows} usable training rows are too few to split validation and test rows off: "
            f"give at least {MIN_ROWS}, or files of your own for both"
        )
    num_validation, num_test = _sizes(num_rows, wants_validation, wants_test)
    bundles = _bundles(clusters, marks, seed)
    room = num_rows // 2
    tested = _stratified(bundles, labels, num_test, room - min(num_validation, room // 2))
    rest = [bundle for bundle in bundles if bundle[0] not in tested]
    validated = _stratified(rest, labels, num_validation, room - len(tested))
    if (num_test and not tested) or (num_validation and not validated):
        raise DataError(
            f"the {num_rows} training rows form only {len(bundles)} groups, too few or too large "
            "to split without a leak: give validation and test files of your own, or rows in more "
            "groups; data.clean.near = off lets rows that only ask nearly the same part"
        )
    sides[list(tested)] = TEST
    sides[list(validated)] = VALIDATION
    return sides


def _sizes(num_rows: int, wants_validation: bool, wants_test: bool) -> tuple[int, int]:
    """How many rows to hold out for validation and for test; half of the rows at most."""
    validation = _size(num_rows, *VALIDATION_SIZE) if wants_validation else 0
    test = _size(num_rows, *TEST_SIZE) if wants_test else 0
    room = num_rows // 2
    if validation + test <= room:
        return validation, test
    shrunk = round(room * test / (validation + test))
    return room - shrunk if wants_validation else 0, shrunk


def _size(num_rows: int, share: float, least: int, most: int) -> int:
    return min(max(round(num_rows * share), least), most)


def _bundles(clusters: Ints, marks: NDArray[np.uint64], seed: int) -> list[list[int]]:
    """Row numbers that must not be parted, in the seed's order."""
    order = np.argsort(clusters, kind="stable")
    borders = np.flatnonzero(np.diff(clusters[order])) + 1
    starts = np.concatenate([[0], borders])
    # What they are sorted by must not depend on the order of the file.
    lowest = np.minimum.reduceat(marks[order], starts).tolist()
    places = [hashlib.sha256(f"{seed}:{mark}".encode()).digest() for mark in lowest]
    rows, ends = order.tolist(), [*borders.tolist(), len(order)]
    bundles = [rows[start:end] for start, end in zip(starts.tolist(), ends, strict=True)]
    return [bundles[i] for i in sorted(range(len(bundles)), key=places.__getitem__)]


def _stratified(
    bundles: Sequence[list[int]], labels: Ints | None, wanted: int, room: int
) -> set[int]:
    """About `wanted` rows in whole bundles, every label with about its share, at most `room`."""
    if labels is None or not wanted:
        return _take(bundles, wanted, room)
    usual = [Counter(labels[bundle].tolist()).most_common(1)[0][0] for bundle in bundles]
    counts = Counter(labels[[i for bundle in bundles for i in bundle]].tolist())
    quotas = _quotas(counts, wanted)
    taken: set[int] = set()
    for bundle, label in zip(bundles, usual, strict=True):
        if quotas[label] >= len(bundle) and len(taken) + len(bundle) <= room:
            taken.update(bundle)
            quotas[label] -= len(bundle)
    rest = [bundle for bundle in bundles if bundle[0] not in taken]
    return taken | _take(rest, wanted - len(taken), room - len(taken))


def _quotas(counts: Counter[int], wanted: int) -> dict[int, int]:
    """`wanted` shared out in proportion to `counts`, by largest remainders."""
    total = counts.total()
    exact = {label: wanted * count / total for label, count in counts.items()}
    quotas = {label: int(share) for label, share in exact.items()}
    left = wanted - sum(quotas.values())
    by_remainder = sorted(exact, key=lambda label: (quotas[label] - exact[label], label))
    for label in by_remainder[:left]:
        quotas[label] += 1
    return quotas


def _take(bundles: Sequence[list[int]], wanted: int, room: int) -> set[int]:
    """About `wanted` rows in whole bundles, never more than `room`."""
    taken: set[int] = set()
    if wanted <= 0:
        return taken
    # Large bundles are passed over while there are small ones, and taken when nothing else is left.
    limit = min(room, wanted + (wanted + 1) // 2)
    for bundle in bundles:
        if len(taken) < wanted and len(taken) + len(bundle) <= limit:
            taken.update(bundle)
    for bundle in sorted(bundles, key=len):
        unused = taken.isdisjoint(bundle)
        if unused and 2 * len(taken) < wanted and len(taken) + len(bundle) <= room:
            taken.update(bundle)
    return taken
