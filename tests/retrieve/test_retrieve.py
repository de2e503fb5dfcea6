"""Chunks cover their documents, BM25 is the textbook's, exact search is exact."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path

import numpy as np
import pytest

from timechat.errors import DataError, ModelError, UserError
from timechat.model.load import Loaded
from timechat.retrieve import index, minilm
from timechat.retrieve.chunks import cut, read_chunks
from timechat.retrieve.embed import Embedder
from timechat.retrieve.index import Bm25, Dense, fuse


def test_chunks_hold_every_word_of_their_document() -> None:
    text = "\n\n".join(
        " ".join(f"w{p}x{i}" for i in range(size)) for p, size in enumerate((5, 300, 40))
    )
    pieces = list(cut(text, 60))
    assert {w for piece in pieces for w in piece.split()} == set(text.split())
    assert max(len(piece.split()) for piece in pieces) <= 60


def test_json_documents_become_readable_text(tmp_path: Path) -> None:
    (tmp_path / "policy.json").write_text(
        json.dumps({"returns": {"days": 30, "who": ["gold", "all"]}})
    )
    (chunk,) = read_chunks(tmp_path)
    assert "days: 30" in chunk.text
    assert "gold all" in chunk.text
    assert chunk.source == "policy.json"


def test_documents_that_cannot_be_read_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no documents at"):
        read_chunks(tmp_path / "none")
    with pytest.raises(DataError, match="holds no text"):
        read_chunks(tmp_path)
    (tmp_path / "bad.txt").write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match=r"bad\.txt is not UTF-8"):
        read_chunks(tmp_path)


def test_bm25_is_the_textbooks() -> None:
    texts = ["the cat sat", "the dog sat on the cat", "birds fly"]
    found = Bm25(texts).scores("cat")
    idf = math.log(1 + (3 - 2 + 0.5) / (2 + 0.5))
    average = 11 / 3
    expected = [
        idf * 2.2 / (1 + 1.2 * (0.25 + 0.75 * size / average)) if size < 7 and has else 0.0
        for size, has in ((3, True), (6, True), (2, False))
    ]
    assert found == pytest.approx(expected)
    assert Bm25(texts).search("cat", 5) == [0, 1]
    assert Bm25(texts).search("zebra", 5) == []


def test_exact_search_finds_the_nearest_by_cosine() -> None:
    vectors = np.random.default_rng(1).normal(size=(200, 16)).astype(np.float32)
    found = Dense(vectors).search(vectors[17] * 3, 3)
    assert found[0] == 17


def test_too_many_chunks_ask_for_faiss(monkeypatch: pytest.MonkeyPatch) -> None:
    import builtins
    from typing import Any

    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "faiss":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(index, "MANY", 10)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match="faiss-cpu"):
        Dense(np.ones((10, 4), np.float32))


def test_fused_rankings_favour_what_both_found() -> None:
    assert fuse([[1, 2, 3], [3, 4]], 2)[0] == 3


def test_the_base_model_embeds_alike_alone_and_in_a_batch(loaded: Loaded) -> None:
    texts = ["When are you open?", "x", "Where is the workshop, and who runs it?"]
    embedder = Embedder(loaded)
    together = embedder.embed(texts)
    for text, row in zip(texts, together, strict=True):
        assert embedder.embed([text])[0] == pytest.approx(row, abs=1e-4)
    centred = embedder.centre(together)
    assert centred.mean(0) == pytest.approx(np.zeros(together.shape[1]), abs=1e-5)


def test_faiss_finds_what_exact_search_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faiss", reason="the extra `retrieval` is not installed")
    random = np.random.default_rng(2)
    vectors = random.normal(size=(500, 16)).astype(np.float32)
    queries = random.normal(size=(20, 16)).astype(np.float32)
    exact = Dense(vectors)
    monkeypatch.setattr(index, "MANY", 10)
    quick = Dense(vectors)
    assert quick._index is not None
    assert [quick.search(q, 5) for q in queries] == [exact.search(q, 5) for q in queries]


def test_a_missing_small_embedder_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minilm, "PACKAGE", "no_such_package_anywhere")
    with pytest.raises(ModelError, match=r"timechat\[retrieval\]"):
        minilm.MiniLm()


def test_the_small_embedder_lays_what_means_the_same_together() -> None:
    if importlib.util.find_spec(minilm.PACKAGE) is None:
        pytest.skip("the extra `retrieval` is not installed")
    texts = ["The cat sits on the mat.", "A feline rests upon a rug.", "Stocks fell on Monday."]
    cat, feline, stocks = index.normalise(minilm.MiniLm().embed(texts))
    assert cat @ feline > 0.4 > cat @ stocks
