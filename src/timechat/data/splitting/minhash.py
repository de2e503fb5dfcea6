"""Near-duplicates among many texts: MinHash to find candidates, the true Jaccard to decide.

A text is its set of four-character pieces. Banded signatures (Broder 1997; Leskovec et al., Mining
of Massive Datasets, ch. 3) make candidates of texts that share a band; a candidate is a pair only
if the two sets themselves are alike, so nothing is ever called near that is not. What is compared
with what, and what follows from it, is `near`'s.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

GRAM = 4
# 25 bands of 5: a pair of Jaccard 0.7 is a candidate with 0.990, one of 0.8 with 0.9999.
BANDS, ROWS_A_BAND = 25, 5
NUM_HASHES = BANDS * ROWS_A_BAND
# Beyond this many texts the comparisons inside a crowded band are bounded, and then each text is
# compared with its neighbours in the order of another band, where near ones stand together.
FREE_PAIRS = 20_000_000
# Estimated by 125 hashes a Jaccard has a standard error of 0.045; further below than this is far.
SLACK = 0.17
CHUNK_TEXTS = 2048
CHUNK_GRAMS = 1 << 19

Words = NDArray[np.uint64]
Ints = NDArray[np.int64]


def gram_hashes(texts: Sequence[str]) -> tuple[Words, Ints]:
    """The hash of every four-character piece of the texts, one text after another, and where each
    text begins. A text shorter than four characters is one piece."""
    padded = [text if len(text) >= GRAM else text.ljust(GRAM, "\0") for text in texts]
    joined = "".join(padded)
    codes = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    lengths = np.fromiter((len(text) for text in padded), np.int64, len(padded))
    ends = np.cumsum(lengths)
    hashes = np.zeros(max(0, len(codes) - GRAM + 1), np.uint64)
    for offset in range(GRAM):
        hashes = _mixed(hashes ^ codes[offset : offset + len(hashes)])
    inside = np.ones(len(hashes), bool)
    for offset in range(1, GRAM):
        # Pieces that would reach over the border of two texts are none.
        border = ends[:-1] - offset
        inside[border] = False
    begins = np.zeros(len(texts), np.int64)
    np.cumsum(lengths[:-1] - (GRAM - 1), out=begins[1:])
    return hashes[inside], begins


def jaccard(one: Words, other: Words) -> float:
    """The Jaccard similarity of two sets given as sorted arrays without repeats."""
    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared / (len(one) + len(other) - shared)


def gram_set(text: str) -> Words:
    """The pieces of one text, sorted, without repeats."""
    return np.unique(gram_hashes([text])[0])


@dataclass(frozen=True, slots=True)
class _Signed:
    """What is kept of the signatures: a key for each band, and a byte of every hash."""

    keys: list[NDArray[np.uint64]]
    bytes_: NDArray[np.uint8]


class Index:
    """Texts to be compared, added one by one; only signatures are kept, and those on disk."""

    def __init__(self, folder: Path | None = None) -> None:
        self._scratch = tempfile.TemporaryDirectory(dir=folder, prefix=".near.")
        place = Path(self._scratch.name)
        self._bands = [(place / f"band-{i}").open("wb+") for i in range(BANDS)]
        self._bytes = (place / "bytes").open("wb+")
        self._waiting: list[str] = []
        self._waiting_size = 0
        self.num_texts = 0
        draw = np.random.default_rng(20_001)
        # Odd multipliers: multiply-shift hashing (Dietzfelbinger et al. 1997).
        self._multipliers = draw.integers(0, 2**63, NUM_HASHES, np.uint64) * np.uint64(2) + 1
        self._added = draw.integers(0, 2**63, NUM_HASHES, np.uint64)

    def add(self, text: str) -> int:
        """Take `text` in; returns its number."""
        self._waiting.append(text)
        self._waiting_size += len(text) + GRAM
        number = self.num_texts
        self.num_texts += 1
        if len(self._waiting) >= CHUNK_TEXTS or self._waiting_size >= CHUNK_GRAMS:
            self._sign()
        return number

    def close(self) -> None:
        for file in (*self._bands, self._bytes):
            file.close()
        self._scratch.cleanup()

    def _sign(self) -> None:
        if not self._waiting:
            return
        hashes, begins = gram_hashes(self._waiting)
        signature = np.empty((len(self._waiting), NUM_HASHES), np.uint32)
        for i in range(NUM_HASHES):
            spread = (hashes * self._multipliers[i] + self._added[i]) >> np.uint64(32)
            signature[:, i] = np.minimum.reduceat(spread.astype(np.uint32), begins)
        for band, file in enumerate(self._bands):
            part = signature[:, band * ROWS_A_BAND : (band + 1) * ROWS_A_BAND]
            key = np.full(len(part), band, np.uint64)
            for column in part.T:
                key = _mixed(key ^ column.astype(np.uint64))
            file.write(key.tobytes())
        self._bytes.write((signature & 0xFF).astype(np.uint8).tobytes())
        self._waiting, self._waiting_size = [], 0

    def _signed(self) -> _Signed:
        self._sign()
        for file in (*self._bands, self._bytes):
            file.flush()
        keys = [np.memmap(file.name, np.uint64, "r") for file in self._bands]
        held = np.memmap(self._bytes.name, np.uint8, "r")
        return _Signed(list(keys), held.reshape(self.num_texts, NUM_HASHES))

    def candidates(
        self, threshold: float, wanted: Callable[[Ints, Ints], NDArray[np.bool_]]
    ) -> Iterator[tuple[int, int]]:
        """Pairs that may be alike, each once or a few times, the lower number first.

        `wanted` is asked of arrays of pairs before they are looked at more closely: whether they
        are still of interest.
        """
        if self.num_texts < 2:
            return
        signed = self._signed()
        least = NUM_HASHES * (threshold - SLACK)
        budget = max(8, FREE_PAIRS // max(1, self.num_texts * BANDS // 4))
        for band, keys in enumerate(signed.keys):
            beside = signed.keys[(band + 1) % BANDS]
            order = np.lexsort((beside, keys))
            sorted_keys = np.asarray(keys)[order]
            for distance in range(1, budget + 1):
                places = np.flatnonzero(sorted_keys[distance:] == sorted_keys[:-distance])
                if not len(places):
                    break
                one, other = order[places], order[places + distance]
                low, high = np.minimum(one, other), np.maximum(one, other)
                yield from self._screened(signed, low, high, least, wanted)

    def _screened(
        self,
        signed: _Signed,
        low: Ints,
        high: Ints,
        least: float,
        wanted: Callable[[Ints, Ints], NDArray[np.bool_]],
    ) -> Iterator[tuple[int, int]]:
        for start in range(0, len(low), CHUNK_TEXTS):
            a, b = low[start : start + CHUNK_TEXTS], high[start : start + CHUNK_TEXTS]
            keep = wanted(a, b)
            a, b = a[keep], b[keep]
            if not len(a):
                continue
            equal = (signed.bytes_[a] == signed.bytes_[b]).sum(1)
            close = equal >= least
            yield from zip(a[close].tolist(), b[close].tolist(), strict=True)


def _mixed(values: Words) -> Words:
    """The finaliser of splitmix64 (Steele et al. 2014): every bit depends on every bit."""
    values = (values + np.uint64(0x9E3779B97F4A7C15)).astype(np.uint64)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
