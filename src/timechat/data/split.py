"""Training, validation and test rows, so that nothing leaks from one to the other.

Rows of one group, and rows that ask the same question, stay on one side. Which side follows from
the seed and the rows' contents, not from their order. Files that the user has split stay split;
`count_overlap` says what they share.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from timechat.conversation import Conversation
from timechat.data.clean import fingerprint
from timechat.errors import DataError

Rows = tuple[Conversation, ...]

MIN_ROWS = 12
# Share of the rows, at least, at most. 400 test rows put about ±5 points around a share of one
# half (Wald, 95 %); validation only has to rank checkpoints, and what it holds is not learned.
VALIDATION_SIZE = (0.04, 4, 256)
TEST_SIZE = (0.10, 20, 400)


@dataclass(frozen=True, slots=True)
class Split:
    """Where every row went."""

    train: Rows
    validation: Rows
    test: Rows


def split(rows: Rows, validation: Rows | None, test: Rows | None, seed: int) -> Split:
    """Split off the sides that are None; leaves training at least half of `rows`.

    Raises DataError with fewer than 12 rows, or when they all hang together.
    """
    if validation is not None and test is not None:
        return Split(rows, validation, test)
    if len(rows) < MIN_ROWS:
        raise DataError(
            f"{len(rows)} usable training rows are too few to split validation and test rows off: "
            f"give at least {MIN_ROWS}, or files of your own for both"
        )
    num_validation, num_test = _sizes(len(rows), validation is None, test is None)
    bundles = _bundles(rows, seed)
    room = len(rows) // 2
    tested = _take(bundles, num_test, room - min(num_validation, room // 2))
    rest = [bundle for bundle in bundles if not tested.issuperset(bundle)]
    validated = _take(rest, num_validation, room - len(tested))
    if (num_test and not tested) or (num_validation and not validated):
        raise DataError(
            f"the {len(rows)} training rows form only {len(bundles)} groups, too few or too large "
            "to split without a leak: give validation and test files of your own, or rows in more "
            "groups"
        )
    left = [i for i in range(len(rows)) if i not in tested and i not in validated]
    return Split(
        tuple(rows[i] for i in left),
        tuple(rows[i] for i in sorted(validated)) if validation is None else validation,
        tuple(rows[i] for i in sorted(tested)) if test is None else test,
    )


def count_overlap(held_out: Rows, train: Rows) -> int:
    """How many held-out rows ask, word for word, what a training row asks."""
    asked = {question_key(row) for row in train}
    return sum(question_key(row) in asked for row in held_out)


def question_key(row: Conversation) -> tuple[str, ...]:
    """The user's turns, lower-case, with punctuation and spaces folded."""
    return tuple(_fold(m.content) for m in row.messages if m.role == "user")


class _Folding(dict[int, str]):
    """A `str.translate` table that makes one space of every mark and space, filled as it is used.

    By Unicode category and not by `\\W`, which would also fold the vowel signs of Indic scripts.
    """

    def __missing__(self, code: int) -> str:
        letter = chr(code)
        self[code] = " " if unicodedata.category(letter)[0] in "PZC" else letter
        return self[code]


_FOLDING = _Folding()


def _fold(text: str) -> str:
    plain = unicodedata.normalize("NFKC", text).casefold()
    # "???" and "!" are questions too: what is punctuation only stays as it is.
    return " ".join(plain.translate(_FOLDING).split()) or " ".join(plain.split())


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


def _bundles(rows: Rows, seed: int) -> list[list[int]]:
    """Row numbers that must not be parted, linked by a group or a question, in the seed's order."""
    parent = list(range(len(rows)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    seen: dict[Hashable, int] = {}
    for i, row in enumerate(rows):
        links: list[Hashable] = [("question", question_key(row))]
        if row.group:
            links.append(("group", row.group))
        for link in links:
            parent[root(i)] = root(seen.setdefault(link, i))
    bundles: dict[int, list[int]] = {}
    for i in range(len(rows)):
        bundles.setdefault(root(i), []).append(i)
    # What they are sorted by must not depend on the order of the file.
    marks = [fingerprint(row) for row in rows]

    def place(bundle: list[int]) -> bytes:
        return hashlib.sha256(f"{seed}:{min(marks[i] for i in bundle)}".encode()).digest()

    return sorted(bundles.values(), key=place)


def _take(bundles: Sequence[list[int]], wanted: int, room: int) -> set[int]:
    """About `wanted` rows in whole bundles, never more than `room`."""
    taken: set[int] = set()
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
