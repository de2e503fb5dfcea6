"""Ids: llama.cpp's, worked out from the file, are those that the model was trained with."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny import TEXT, byte_tokenizer, piece_tokenizer, write_family
from tokenizers import Regex, pre_tokenizers
from transformers import AutoConfig, AutoTokenizer, LlamaConfig

from timechat.conversation import Message
from timechat.errors import ExportError
from timechat.export import ggufile, inspection
from timechat.export.spelling import Speller
from timechat.export.vocabulary import GPT4O, LLAMA3, QWEN2, TEKKEN, read_vocabulary
from timechat.export.weights import Weights
from timechat.model.render import Renderer

REPOSITORY = Path(__file__).parents[2]
LLAMA2 = REPOSITORY.parent / "shared/models/llama2-tokenizer/tokenizer.model"
PROSE = REPOSITORY.parent / "shared/data/prose"
SPECIAL_TEXT = [
    "a <s> b </s> c<unk>", "<|im_start|>user", "</s>", "x<|im_end|>\n<|im_end|>", "<0x0A>",
]  # fmt: skip
CONVERSATION = [
    Message("system", "You are brief."),
    Message("user", "When are you open?"),
    Message("assistant", "From nine to five."),
    Message("user", "And   on Sundays?\n\nTell me."),
]


def split_by(regex: str) -> Any:
    split = pre_tokenizers.Split(Regex(regex), "isolated")
    return pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )


WORDS = pre_tokenizers.ByteLevel(add_prefix_space=False)
WAYS = {
    "gpt-2": WORDS,
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), WORDS]),
    "dbrx": split_by(LLAMA3),
    "qwen2": split_by(QWEN2),
    "gpt-4o": split_by(GPT4O),
}


def code_lines() -> list[str]:
    files = sorted((REPOSITORY / "src").rglob("*.py"))
    return [line for file in files for line in file.read_text("utf-8").splitlines()]


def plain(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])


@pytest.mark.parametrize("name", WAYS)
def test_each_way_of_splitting_is_named_and_spells_alike(name: str) -> None:
    tokenizer = byte_tokenizer(WAYS[name])
    vocabulary = read_vocabulary(tokenizer, [2], 600)
    assert vocabulary.pre == name
    speller = Speller(vocabulary)
    for text in [*TEXT, *SPECIAL_TEXT, *inspection.AWKWARD, *code_lines()[:500]]:
        assert speller.encode(text, special=False) == plain(tokenizer, text)
        whole = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert speller.encode(text, special=True) == whole


@pytest.mark.parametrize("prefix", [False, True])
def test_pieces_spell_alike_with_and_without_a_space_before(prefix: bool) -> None:
    tokenizer = piece_tokenizer(prefix)
    speller = Speller(read_vocabulary(Renderer(tokenizer).tokenizer, [2], 600))
    for text in [*TEXT, *SPECIAL_TEXT, *inspection.AWKWARD, *code_lines()[:500]]:
        assert speller.encode(text, special=False) == plain(tokenizer, text), text


def test_a_conversation_renders_to_the_same_ids() -> None:
    for tokenizer in (byte_tokenizer(), piece_tokenizer()):
        renderer = Renderer(tokenizer)
        vocabulary = read_vocabulary(tokenizer, sorted(renderer.stop_ids), 600)
        inspection.check_vocabulary(vocabulary, renderer, [CONVERSATION])


def test_fillers_stand_where_the_model_has_rows_without_tokens() -> None:
    tokenizer = byte_tokenizer()
    vocabulary = read_vocabulary(tokenizer, [2], len(tokenizer) + 3)
    assert len(vocabulary.tokens) == len(tokenizer) + 3
    assert vocabulary.tokens[-1].startswith("[PAD")


def test_an_unknown_way_of_splitting_is_refused() -> None:
    with pytest.raises(ExportError, match="splits text in a way that llama"):
        read_vocabulary(byte_tokenizer(split_by(r"\w+|\W")), [2], 600)


def test_the_tekken_way_needs_whole_words_first() -> None:
    with pytest.raises(ExportError, match="no name for"):
        read_vocabulary(byte_tokenizer(split_by(TEKKEN)), [2], 600)


@pytest.fixture(scope="module")
def llama2(tmp_path_factory: pytest.TempPathFactory) -> Any:
    if not LLAMA2.is_file():
        pytest.skip("the Llama 2 tokenizer is not in ../shared/models")
    folder = tmp_path_factory.mktemp("llama2")
    shutil.copyfile(LLAMA2, folder / "tokenizer.model")
    LlamaConfig().save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def long_text() -> Iterator[str]:
    """5,000 lines of prose and 5,000 of code."""
    if not PROSE.is_dir():
        pytest.skip("no prose in ../shared/data")
    book = sorted(PROSE.rglob("*.txt"))[0].read_text("utf-8")
    yield from book.splitlines()[:5000]
    yield from code_lines()[:5000]


@pytest.mark.slow
def test_llama_2_spells_ten_thousand_lines_as_sentencepiece_does(llama2: Any) -> None:
    sentencepiece = pytest.importorskip("sentencepiece", reason="sentencepiece is not installed")
    original = sentencepiece.SentencePieceProcessor(str(LLAMA2))
    speller = Speller(read_vocabulary(Renderer(llama2).tokenizer, [2], 32_000))
    for text in [*SPECIAL_TEXT, *long_text()]:
        ids = plain(llama2, text)
        assert speller.encode(text, special=False) == ids, text
        # SentencePiece puts a space before; the same text with its own space is the same to it.
        if text.startswith(" ") and not text.startswith("  "):
            assert original.encode(text[1:]) == ids, text


@pytest.mark.slow
def test_llama_cpp_spells_ten_thousand_lines_of_llama_2_alike(llama2: Any, tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    path = write_vocabulary(tmp_path, llama2, 32_000)
    llama = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    for text in [*SPECIAL_TEXT, *long_text()]:
        ids = llama.tokenize(text.encode(), add_bos=False, special=False)
        assert ids == plain(llama2, text), text
        ids = llama.tokenize(text.encode(), add_bos=False, special=True)
        assert ids == llama2(text, add_special_tokens=False)["input_ids"], text
    llama.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", WAYS)
def test_llama_cpp_spells_bytes_alike(name: str, tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    tokenizer = byte_tokenizer(WAYS[name])
    path = write_vocabulary(tmp_path, tokenizer, 512)
    llama = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    for text in [*TEXT, *SPECIAL_TEXT, *inspection.AWKWARD, *code_lines()[:2000]]:
        for special in (False, True):
            ids = llama.tokenize(text.encode(), add_bos=False, special=special)
            expected = tokenizer(text, add_special_tokens=False, split_special_tokens=not special)[
                "input_ids"
            ]
            assert ids == expected, text
    llama.close()


def write_vocabulary(folder: Path, tokenizer: Any, size: int) -> Path:
    """A GGUF of a tiny model with this tokenizer."""
    base = write_family(folder / "base", "llama", tokenizer, vocab_size=size)
    renderer = Renderer(AutoTokenizer.from_pretrained(base))
    vocabulary = read_vocabulary(renderer.tokenizer, sorted(renderer.stop_ids), size)
    config = AutoConfig.from_pretrained(base)
    ggufile.write_gguf(folder / "v.gguf", Weights(base), config, vocabulary, "f16", "tiny")
    return folder / "v.gguf"
