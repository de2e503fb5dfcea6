"""Documents, and the chunks of them that a question needs: by words, by meaning, or by both.

How texts become vectors and which lie near each other is `retrieve`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, Protocol, get_args

from timechat.errors import RecipeError, nearest
from timechat.model.load import Loaded
from timechat.retrieve.chunks import Chunk, read_chunks
from timechat.retrieve.embed import Embedder
from timechat.retrieve.index import Bm25, Dense, Vectors, fuse
from timechat.retrieve.minilm import MiniLm
from timechat.stages.watch import Watcher

CHUNKS = 3
EmbedderName = Literal["base", "minilm"]
"""The base's own hidden states, or the small model of the extra `retrieval`."""
By = Literal["words", "meaning", "both"]


class Embeds(Protocol):
    """Whatever makes vectors of texts."""

    def embed(self, texts: Sequence[str], progress: Callable[[int], None] = ...) -> Vectors: ...

    def centre(self, vectors: Vectors) -> Vectors: ...


class DocumentIndex:
    """Chunks of documents with an index of words and one of meaning."""

    def __init__(self, chunks: Sequence[Chunk], embedder: Embeds, watcher: Watcher) -> None:
        self.chunks = list(chunks)
        texts = [chunk.text for chunk in chunks]
        tick = watcher.track(f"reading {len(texts)} chunks of documents", len(texts))
        self.words = Bm25(texts)
        self.embedder = embedder
        self.meaning = Dense(embedder.centre(embedder.embed(texts, tick)))

    def look_up(self, query: str, by: By = "both", k: int = CHUNKS) -> list[Chunk]:
        """The `k` chunks that a query needs, the best first."""
        rankings: list[list[int]] = []
        if by != "meaning":
            rankings.append(self.words.search(query, 4 * k))
        if by != "words":
            rankings.append(self.meaning.search(self.embedder.embed([query])[0], 4 * k))
        return [self.chunks[i] for i in fuse(rankings, k)]


def parse_embedder(text: str) -> EmbedderName:
    """Raises RecipeError for a name that is none."""
    for name in get_args(EmbedderName):
        if name == text:
            return name
    raise RecipeError(f"no embedder {text!r}: {nearest(text, get_args(EmbedderName))}")


def build_index(
    documents: Path, loaded: Loaded, embedder: EmbedderName, watcher: Watcher
) -> DocumentIndex:
    """Raises DataError for documents that cannot be read, ModelError for a missing embedder."""
    chunks = read_chunks(documents)
    return DocumentIndex(chunks, MiniLm() if embedder == "minilm" else Embedder(loaded), watcher)
