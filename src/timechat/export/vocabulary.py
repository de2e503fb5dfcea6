"""A tokenizer as GGUF holds it: pieces, scores, kinds, merges, and how text is split before.

llama.cpp knows two kinds that chat models use: byte-level BPE ("gpt2"), whose way of splitting text
goes by a name, and SentencePiece BPE ("llama"), whose merges go by score. A tokenizer that does
anything else is refused, because its ids could not be the same. That they are the same on the
run's own text is checked by `spelling`, which reads this back.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

from gguf import TokenType
from transformers import PreTrainedTokenizerBase

from timechat.errors import ExportError

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_HEAD = r"[^\r\n\p{L}\p{N}]?"
_TAIL_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = rf"{_CONTRACTIONS}|{_HEAD}\p{{L}}+|\p{{N}}{{1,3}}|{_TAIL}"
QWEN2 = rf"{_CONTRACTIONS}|{_HEAD}\p{{L}}+|\p{{N}}|{_TAIL}"
TEKKEN = rf"{_HEAD}{_UPPER}*{_LOWER}+|{_HEAD}{_UPPER}+{_LOWER}*|\p{{N}}|{_TAIL_SLASH}"
GPT4O = (
    rf"{_HEAD}{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|{_HEAD}{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
    rf"|\p{{N}}{{1,3}}|{_TAIL_SLASH}"
)
_BYTES, _WORDS = "bytes", "words and bytes"
# Ways of splitting text by the names that llama.cpp gives them; the flag is BPE's `ignore_merges`.
PRE_TYPES: dict[tuple[tuple[str, ...], bool], str] = {
    ((_WORDS,), False): "gpt-2",
    (("digits one by one", _WORDS), False): "smollm",
    (("punctuation Contiguous", _WORDS, "digits", "split [0-9][0-9][0-9]"), False): "falcon",
    ((f"split {LLAMA3}", _BYTES), True): "llama-bpe",
    ((f"split {LLAMA3}", _BYTES), False): "dbrx",
    ((f"split {QWEN2}", _BYTES), False): "qwen2",
    ((f"split {TEKKEN}", _BYTES), True): "tekken",
    ((f"split {GPT4O}", _BYTES), False): "gpt-4o",
}
_SPACE = "▁"


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The tokenizer's part of a GGUF file. `merges` belong to kind "gpt2", `scores` to "llama"."""

    kind: str
    pre: str
    tokens: tuple[str, ...]
    types: tuple[int, ...]
    scores: tuple[float, ...] = ()
    merges: tuple[str, ...] = ()
    add_space_prefix: bool = False
    special_ids: tuple[tuple[str, int], ...] = ()
    add_bos: bool = False
    template: str = ""


def read_vocabulary(
    tokenizer: PreTrainedTokenizerBase, stops: list[int], num_rows: int
) -> Vocabulary:
    """The vocabulary of `tokenizer` for a model with `num_rows` embeddings.

    `stops` are the ids that end an answer, the template's own first. Raises ExportError for a
    tokenizer that llama.cpp has no equal of.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ExportError("the tokenizer has no fast form (tokenizer.json): GGUF cannot hold it")
    content = cast(dict[str, Any], json.loads(backend.to_str()))
    model = content["model"]
    if model["type"] != "BPE":
        raise ExportError(
            f"the tokenizer is of the kind {model['type']}, which GGUF has no equal of for chat "
            "models: BPE and SentencePiece BPE are known"
        )
    tokens, types = _tokens(content, num_rows)
    if _is_byte_level(content):
        found = _byte_level(content, tokens, types)
    elif model.get("byte_fallback"):
        found = _sentence_pieces(content, tokens, types)
    else:
        raise ExportError("the tokenizer's BPE neither works on bytes nor falls back to them")
    return replace(
        found,
        special_ids=tuple(_special_ids(tokenizer, stops).items()),
        add_bos=_adds_bos(tokenizer),
        template=str(tokenizer.chat_template),
    )


def _tokens(content: Mapping[str, Any], num_rows: int) -> tuple[list[str], list[int]]:
    """Every row of the embedding with its text and kind; rows without a token are fillers."""
    vocabulary: dict[str, int] = content["model"]["vocab"]
    added: list[dict[str, Any]] = content["added_tokens"]
    last = max([*vocabulary.values(), *(token["id"] for token in added)])
    if last >= num_rows:
        raise ExportError(
            f"the tokenizer has a token {last}, but the model has only {num_rows} embeddings: "
            "tokens were added to one and not to the other"
        )
    tokens = [f"[PAD{i}]" for i in range(num_rows)]
    types = [int(TokenType.UNUSED)] * num_rows
    for text, i in vocabulary.items():
        tokens[i], types[i] = text, int(TokenType.NORMAL)
    for token in added:
        i = token["id"]
        tokens[i] = token["content"]
        types[i] = int(TokenType.CONTROL if token["special"] else TokenType.USER_DEFINED)
    return tokens, types


def _is_byte_level(content: Mapping[str, Any]) -> bool:
    return any(part["type"] == "ByteLevel" for part in _parts(content["pre_tokenizer"]))


def _byte_level(content: Mapping[str, Any], tokens: list[str], types: list[int]) -> Vocabulary:
    _refuse_normalizer(content, allowed=("NFC",))
    way = tuple(_describe(part) for part in _parts(content["pre_tokenizer"]))
    model = content["model"]
    pre = PRE_TYPES.get((way, bool(model.get("ignore_merges"))))
    if pre is None:
        raise ExportError(
            f"the tokenizer splits text in a way that llama.cpp has no name for ({', '.join(way)}),"
            " so its ids would differ: known are " + ", ".join(sorted(PRE_TYPES.values()))
        )
    merges = tuple(" ".join(pair) for pair in _pairs(model))
    if not merges:
        raise ExportError("the tokenizer has no merges: llama.cpp cannot read such a BPE")
    return Vocabulary("gpt2", pre, tuple(tokens), tuple(types), merges=merges)


def _sentence_pieces(content: Mapping[str, Any], tokens: list[str], types: list[int]) -> Vocabulary:
    """SentencePiece merges the pair whose result scores best; the order of merges is that score."""
    model = content["model"]
    scores = [-1e6] * len(tokens)
    for rank, (left, right) in enumerate(_pairs(model)):
        i = model["vocab"][left + right]
        scores[i] = max(scores[i], -float(rank))
    for i, text in enumerate(tokens):
        if types[i] == TokenType.NORMAL and _is_byte(text):
            types[i] = int(TokenType.BYTE)
    unknown = model.get("unk_token")
    if unknown in model["vocab"]:
        types[model["vocab"][unknown]] = int(TokenType.UNKNOWN)
    prefix = _space_prefix(content)
    return Vocabulary("llama", "default", tuple(tokens), tuple(types), tuple(scores), (), prefix)


def _space_prefix(content: Mapping[str, Any]) -> bool:
    """Whether text gets a space before it. Raises ExportError for any other normalisation."""
    prefix = False
    for part in _parts(content["normalizer"]):
        if part["type"] == "Prepend" and part["prepend"] == _SPACE:
            prefix = True
        elif not (part["type"] == "Replace" and part["content"] == _SPACE):
            raise ExportError(f"the tokenizer changes text before it splits it ({part['type']})")
    for part in _parts(content["pre_tokenizer"]):
        if part["type"] == "Metaspace":
            prefix = part.get("prepend_scheme", "always") != "never"
            if part.get("split"):
                raise ExportError("the tokenizer splits at spaces: SentencePiece would not")
        elif part["type"] != "Split":
            raise ExportError(f"the tokenizer splits text first ({part['type']})")
    return prefix


def _refuse_normalizer(content: Mapping[str, Any], allowed: tuple[str, ...]) -> None:
    for part in _parts(content["normalizer"]):
        if part["type"] not in allowed:
            raise ExportError(f"the tokenizer changes text before it splits it ({part['type']})")


def _parts(node: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """A normalizer or pre-tokenizer as a flat list."""
    if node is None:
        return []
    if node["type"] == "Sequence":
        inner = node.get("pretokenizers") or node.get("normalizers") or []
        return [part for child in inner for part in _parts(child)]
    return [dict(node)]


def _describe(part: Mapping[str, Any]) -> str:
    kind = part["type"]
    if kind == "ByteLevel":
        text = _WORDS if part.get("use_regex", True) else _BYTES
        return f"{text} after a space" if part.get("add_prefix_space") else text
    if kind == "Digits":
        return "digits one by one" if part["individual_digits"] else "digits"
    if kind == "Punctuation":
        return f"punctuation {part['behavior']}"
    if kind == "Split" and part["behavior"] == "Isolated" and not part["invert"]:
        pattern = part["pattern"]
        return f"split {pattern.get('Regex') or pattern.get('String')}"
    return json.dumps(dict(part))


def _pairs(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Merges are pairs, or in older files strings with a space between."""
    pairs = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    return cast(list[tuple[str, str]], pairs)


def _special_ids(tokenizer: PreTrainedTokenizerBase, stops: list[int]) -> dict[str, int]:
    """Ids by the names of GGUF's keys. `eot` ends a turn, `eos` the text; often they are one."""
    eos = tokenizer.eos_token_id
    ids: dict[str, int] = {"eos": stops[0] if eos is None else int(cast(int, eos)), "eot": stops[0]}
    for name, key in (("bos", "bos"), ("unk", "unknown"), ("pad", "padding")):
        value = getattr(tokenizer, f"{name}_token_id", None)
        if value is not None:
            ids[key] = int(value)
    return ids


def _adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Only where the template writes it too: a prompt must not begin otherwise than in training."""
    bos = cast(str | None, tokenizer.bos_token)
    if not bos:
        return False
    ids = cast(list[int], tokenizer("a")["input_ids"])
    rows = [{"role": "user", "content": "a"}]
    opening = str(tokenizer.apply_chat_template(rows, tokenize=False))
    return ids[0] == tokenizer.bos_token_id and opening.startswith(bos)


def _is_byte(text: str) -> bool:
    return len(text) == 6 and text.startswith("<0x") and text.endswith(">")
