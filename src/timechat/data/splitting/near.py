"""What rows ask, folded and kept on disk, and which of them ask nearly the same.

A row asks its user's turns together, and in a conversation of several turns each longer turn by
itself, so that a single question is found again inside a conversation. Two askings are near when
the Jaccard similarity of their four-character pieces reaches a threshold and they name the same
numbers. How candidates are found is `minhash`'s.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
import unicodedata
from array import array
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from timechat.conversation import Conversation
from timechat.data.splitting.minhash import Index, Ints, Words, gram_set, jaccard

# A turn of fewer words ("yes, that is right") is an answer to what stood before it.
MIN_TURN_WORDS = 5
SINGLE, WHOLE, TURN = 0, 1, 2
_NUMBER = re.compile(r"\d+")


class _Folding(dict[int, str]):
    """A `str.translate` table that makes one space of every mark and space, filled as it is used.

    By Unicode category and not by `\\W`, which would also fold the vowel signs of Indic scripts.
    """

    def __missing__(self, code: int) -> str:
        letter = chr(code)
        self[code] = " " if unicodedata.category(letter)[0] in "PZC" else letter
        return self[code]


_FOLDING = _Folding()


def fold(text: str) -> str:
    """`text` without case, punctuation and spacing."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    # "???" and "!" are questions too: what is punctuation only stays as it is.
    return " ".join(plain.translate(_FOLDING).split()) or " ".join(plain.split())


def asked(row: Conversation) -> list[str]:
    """The folded turns of the user; of a text, the text."""
    if row.is_text:
        return [fold("".join(m.content for m in row.messages))]
    return [fold(m.content) for m in row.messages if m.role == "user"]


def question_key(row: Conversation) -> tuple[str, ...]:
    """What makes two rows ask the same, word for word."""
    return tuple(asked(row))


class Askings:
    """What rows ask, each with its row's number and its side; the texts are on disk."""

    def __init__(self, folder: Path | None = None) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (`close` closes it)
        self._folder = folder
        self._offsets = array("q", [0])
        self._rows = array("q")
        self._kinds = array("b")
        self._sides = array("b")
        self._hashes = array("Q")
        self._text = lru_cache(maxsize=1 << 14)(self._read)
        self._grams = lru_cache(maxsize=1 << 12)(lambda entry: gram_set(self._text(entry)))

    def close(self) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, row: Conversation, number: int, side: int = 0) -> None:
        """Take in what row `number` asks; sides tell training rows (0) from evaluation sets."""
        turns = asked(row)
        if len(turns) == 1:
            self._put(turns[0], number, SINGLE, side)
            return
        self._put("\n".join(turns), number, WHOLE, side)
        for turn in turns:
            if turn.count(" ") >= MIN_TURN_WORDS - 1:
                self._put(turn, number, TURN, side)

    def _put(self, text: str, row: int, kind: int, side: int) -> None:
        raw = text.encode("utf-8", "surrogatepass")
        self._file.write(raw)
        self._offsets.append(self._offsets[-1] + len(raw))
        self._rows.append(row)
        self._kinds.append(kind)
        self._sides.append(side)
        digest = hashlib.blake2b(raw, digest_size=8).digest()
        self._hashes.append(int.from_bytes(digest, "little"))

    def set_sides(self, sides: NDArray[np.int8]) -> None:
        """Give the training rows, numbered as in `sides`, the sides that they went to."""
        mine = np.flatnonzero(self.sides() == 0)
        new = self.sides().copy()
        new[mine] = sides[self.rows()[mine]]
        self._sides = array("b", new.tobytes())

    def text(self, entry: int) -> str:
        return self._text(entry)

    def rows(self) -> Ints:
        return np.asarray(self._rows)

    def sides(self) -> NDArray[np.int8]:
        return np.asarray(self._sides)

    def kinds(self) -> NDArray[np.int8]:
        return np.asarray(self._kinds)

    def equal(self) -> Iterator[tuple[int, int]]:
        """Pairs of training entries that ask the same word for word and may be linked: enough of
        them to link every such entry with every other, not all."""
        hashes, kinds = np.asarray(self._hashes), self.kinds()
        order = np.lexsort((kinds, hashes))
        order = order[self.sides()[order] == 0]
        same = np.flatnonzero(hashes[order][1:] == hashes[order][:-1])
        first = previous = -1
        for place in same.tolist():
            if place != previous + 1 or first < 0:
                first = place
            previous = place
            one, other = int(order[first]), int(order[place + 1])
            if may_link(int(kinds[one]), int(kinds[other])):
                yield one, other

    def equal_across(self) -> Iterator[tuple[int, int]]:
        """Pairs that ask the same word for word on the training and on another side: each such
        entry in at least one of them."""
        order, hashes = self._order
        kinds, sides = self.kinds(), self.sides()
        borders = np.flatnonzero(np.diff(hashes)) + 1
        starts = np.concatenate([[0], borders])
        held = np.add.reduceat((sides[order] != 0).astype(np.int64), starts) if len(order) else []
        sizes = np.diff(np.concatenate([starts, [len(order)]]))
        for place in np.flatnonzero((np.asarray(held) > 0) & (np.asarray(held) < sizes)).tolist():
            group: list[int] = order[starts[place] : starts[place] + sizes[place]].tolist()
            group.sort(key=lambda entry: int(kinds[entry]))
            train = [e for e in group if sides[e] == 0]
            for one, other in paired(train, [e for e in group if sides[e] != 0]):
                if may_link(int(kinds[one]), int(kinds[other])):
                    yield one, other

    def near(self, threshold: float) -> Iterator[tuple[int, int, float]]:
        """Pairs of different askings that are near, with their similarity: both of the training
        rows, or one of them and one of an evaluation set."""
        chosen = self._representatives()
        if len(chosen) < 2:
            return
        kinds, sides = self.kinds()[chosen], self.sides()[chosen]
        index = Index(self._folder)
        try:
            for entry in chosen.tolist():
                index.add(self._read(entry))

            def wanted(a: Ints, b: Ints) -> NDArray[np.bool_]:
                linkable = (kinds[a] == SINGLE) | (kinds[b] == SINGLE)
                linkable |= (kinds[a] == WHOLE) & (kinds[b] == WHOLE)
                return linkable & ((sides[a] == 0) | (sides[b] == 0))

            seen: set[int] = set()
            for a, b in index.candidates(threshold, wanted):
                pair = a * len(chosen) + b
                if pair in seen:
                    continue
                seen.add(pair)
                one, other = int(chosen[a]), int(chosen[b])
                similarity = self.similarity(one, other)
                if similarity >= threshold:
                    yield one, other, similarity
        finally:
            index.close()

    def similarity(self, one: int, other: int) -> float:
        """The Jaccard similarity of two entries, 0 where they name different numbers."""
        if _numbers(self._text(one)) != _numbers(self._text(other)):
            return 0.0
        return jaccard(self._grams(one), self._grams(other))

    def same(self, entry: int) -> list[int]:
        """Every entry that asks what `entry` asks and is of its kind and side."""
        order, ordered = self._order
        hash_ = np.asarray(self._hashes)[entry]
        low, high = np.searchsorted(ordered, [hash_, hash_ + np.uint64(1)])
        if hash_ == np.iinfo(np.uint64).max:
            high = len(ordered)
        kinds, sides = self.kinds(), self.sides()
        return [
            other
            for other in order[low:high].tolist()
            if kinds[other] == kinds[entry] and sides[other] == sides[entry]
        ]

    @property
    def _order(self) -> tuple[Ints, Words]:
        if getattr(self, "_ordered", None) is None or len(self._ordered[0]) != len(self):
            hashes = np.asarray(self._hashes)
            order = np.argsort(hashes, kind="stable")
            self._ordered = (order, hashes[order])
        return self._ordered

    def _representatives(self) -> Ints:
        """One entry for each text, kind and side: equal ones are linked already."""
        hashes, kinds, sides = np.asarray(self._hashes), self.kinds(), self.sides()
        if not (kinds == SINGLE).any():
            keep = np.flatnonzero(kinds != TURN)
        else:
            keep = np.arange(len(hashes))
        marks = np.stack([kinds[keep], sides[keep]])
        order = np.lexsort((keep, marks[1], marks[0], hashes[keep]))
        ordered = hashes[keep][order], marks[:, order]
        fresh = np.ones(len(order), bool)
        fresh[1:] = (ordered[0][1:] != ordered[0][:-1]) | (
            ordered[1][:, 1:] != ordered[1][:, :-1]
        ).any(0)
        return np.sort(keep[order[fresh]])

    def _read(self, entry: int) -> str:
        start, end = self._offsets[entry], self._offsets[entry + 1]
        self._file.seek(start)
        raw = self._file.read(end - start)
        self._file.seek(0, 2)
        return raw.decode("utf-8", "surrogatepass")


def may_link(one: int, other: int) -> bool:
    """Whether entries of these kinds may ask the same: two whole rows, or a single question and a
    turn. The same turn in two conversations is no twin: what came before it differs."""
    return SINGLE in (one, other) or one == other == WHOLE


def paired(some: list[int], others: list[int]) -> Iterator[tuple[int, int]]:
    """Every one of `some` and of `others` in a pair, without all pairs that there are."""
    for one in some:
        yield one, others[0]
    for other in others[1:]:
        yield some[0], other


def _numbers(text: str) -> list[str]:
    return _NUMBER.findall(text)
