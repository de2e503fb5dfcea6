"""Which chunks a question needs: BM25 over words, exact search over vectors, or both together.

Vectors come from whoever embeds (`embed`); here is only the arithmetic. Exact search in NumPy
serves up to 100,000 chunks; beyond that FAISS searches the same vectors just as exactly.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from timechat.errors import UserError

K1, B = 1.2, 0.75
"""Robertson and Zaragoza (2009), the usual values."""
MANY = 100_000
FUSION = 60
"""Reciprocal rank fusion's constant (Cormack et al. 2009)."""

Vectors = NDArray[np.float32]


def words_of(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


class Bm25:
    """Okapi BM25 over the words of the chunks."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.sizes = np.array([max(1, len(words_of(t))) for t in texts], dtype=np.float64)
        self.average = float(self.sizes.mean())
        self._postings: dict[str, list[tuple[int, int]]] = {}
        for i, text in enumerate(texts):
            for word, count in Counter(words_of(text)).items():
                self._postings.setdefault(word, []).append((i, count))

    def scores(self, query: str) -> NDArray[np.float64]:
        """One score a chunk; a word that the query repeats counts as often."""
        total = np.zeros(len(self.sizes))
        num = len(self.sizes)
        for word in words_of(query):
            places = self._postings.get(word, [])
            weight = math.log(1 + (num - len(places) + 0.5) / (len(places) + 0.5))
            for i, count in places:
                norm = K1 * (1 - B + B * self.sizes[i] / self.average)
                total[i] += weight * count * (K1 + 1) / (count + norm)
        return total

    def search(self, query: str, k: int) -> list[int]:
        """The places of the best `k` chunks, best first; chunks without a word of it are none."""
        scores = self.scores(query)
        best = np.argsort(-scores, kind="stable")[:k]
        return [int(i) for i in best if scores[i] > 0]


class Dense:
    """Cosine similarity over vectors (n, D), exact."""

    def __init__(self, vectors: Vectors) -> None:
        self.vectors = normalise(vectors)
        self._index = None
        if len(vectors) >= MANY:
            self._index = _faiss_index(self.vectors)

    def search(self, query: Vectors, k: int) -> list[int]:
        wanted = normalise(query[None])[0]
        if self._index is not None:
            _, found = self._index.search(wanted[None], k)
            return [int(i) for i in found[0] if i >= 0]
        return [int(i) for i in np.argsort(-(self.vectors @ wanted), kind="stable")[:k]]


def fuse(rankings: Sequence[Sequence[int]], k: int) -> list[int]:
    """Several rankings as one: each gives 1 / (60 + rank) to what it found."""
    total: dict[int, float] = {}
    for ranking in rankings:
        for rank, i in enumerate(ranking):
            total[i] = total.get(i, 0.0) + 1 / (FUSION + rank)
    return sorted(total, key=lambda i: (-total[i], i))[:k]


def normalise(vectors: Vectors) -> Vectors:
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return (vectors / np.maximum(length, 1e-9)).astype(np.float32)


def _faiss_index(vectors: Vectors):  # pyright: ignore
    try:
        import faiss  # pyright: ignore
    except ImportError:
        raise UserError(
            f"{len(vectors):,} chunks are too many for exact search in NumPy: install faiss-cpu, "
            f"or bring fewer than {MANY:,}"
        ) from None
    index = faiss.IndexFlatIP(vectors.shape[1])  # pyright: ignore
    index.add(vectors)  # pyright: ignore
    return index  # pyright: ignore
