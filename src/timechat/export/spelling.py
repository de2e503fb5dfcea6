"""llama.cpp's way from text to ids, worked out from what a GGUF file says of its tokenizer.

An implementation of its own, so that ids can be compared before a file leaves the house and where
no llama.cpp is installed. The slow tests hold it against llama.cpp itself.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator

from gguf import TokenType
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from timechat.export.vocabulary import GPT4O, LLAMA3, QWEN2, TEKKEN, Vocabulary

_SPLITS = {
    "llama-bpe": LLAMA3, "dbrx": LLAMA3, "qwen2": QWEN2, "tekken": TEKKEN, "gpt-4o": GPT4O,
}  # fmt: skip
_IGNORE_MERGES = ("llama-bpe", "tekken")


class Speller:
    """Text to ids, as llama.cpp does it for this vocabulary; no BOS is ever added."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self._ids = {text: i for i, text in enumerate(vocabulary.tokens)}
        kinds = zip(vocabulary.tokens, vocabulary.types, strict=True)
        named = [(text, kind) for text, kind in kinds if kind in _WHOLE and text]
        # Longest first, as llama.cpp does: one that holds another wins.
        named.sort(key=lambda item: len(item[0]), reverse=True)
        self._whole = [text for text, _ in named]
        self._always_whole = [text for text, kind in named if kind == TokenType.USER_DEFINED]
        self._words = _byte_level(vocabulary) if vocabulary.kind == "gpt2" else None

    def encode(self, text: str, special: bool) -> list[int]:
        """Ids of `text`; with `special`, the text of a control token becomes that token."""
        ids: list[int] = []
        after_special = True
        for part in self._partition(text, self._whole if special else self._always_whole):
            if isinstance(part, int):
                ids.append(part)
                after_special = True
                continue
            if self._words is not None:
                ids += self._words.encode(part, add_special_tokens=False).ids
            else:
                prefix = " " if self.vocabulary.add_space_prefix and after_special else ""
                ids += self._pieces(prefix + part)
            after_special = False
        return ids

    def _partition(self, text: str, whole: list[str]) -> Iterator[str | int]:
        """The text cut at the tokens that are matched whole; those as their ids."""
        parts: list[str | int] = [text]
        for token in whole:
            if token not in text:
                continue
            cut: list[str | int] = []
            for part in parts:
                if isinstance(part, int):
                    cut.append(part)
                    continue
                first, *rest = part.split(token)
                cut.append(first)
                for piece in rest:
                    cut += [self._ids[token], piece]
            parts = cut
        return (part for part in parts if part != "")

    def _pieces(self, text: str) -> list[int]:
        """SentencePiece: join the neighbours whose joint scores best, leftmost first."""
        marked = text.replace(" ", "▁")
        pieces: list[str | None] = list(marked)
        after = [*range(1, len(pieces)), -1]
        before = [-1, *range(len(pieces) - 1)]
        queue: list[tuple[float, int, int, str]] = []

        def offer(left: int, right: int) -> None:
            if left < 0 or right < 0:
                return
            joint = (pieces[left] or "") + (pieces[right] or "")
            i = self._ids.get(joint)
            if i is not None:
                heapq.heappush(queue, (-self.vocabulary.scores[i], left, right, joint))

        for i in range(len(pieces) - 1):
            offer(i, i + 1)
        while queue:
            _, left, right, joint = heapq.heappop(queue)
            one, two = pieces[left], pieces[right]
            if one is None or two is None or after[left] != right or one + two != joint:
                continue
            pieces[left], pieces[right] = joint, None
            after[left] = after[right]
            if after[right] >= 0:
                before[after[right]] = left
            offer(before[left], left)
            offer(left, after[left])
        return [i for piece in pieces if piece is not None for i in self._spell(piece)]

    def _spell(self, piece: str) -> list[int]:
        """A piece's id, or those of its bytes."""
        if piece in self._ids:
            return [self._ids[piece]]
        return [self._ids[f"<0x{byte:02X}>"] for byte in piece.encode()]


_WHOLE = (TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN)


def _byte_level(vocabulary: Vocabulary) -> Tokenizer:
    merges = [(one, two) for one, two in (m.split(" ") for m in vocabulary.merges)]
    kinds = zip(vocabulary.tokens, vocabulary.types, strict=True)
    words = {t: i for i, (t, kind) in enumerate(kinds) if kind == TokenType.NORMAL}
    core = Tokenizer(
        models.BPE(vocab=words, merges=merges, ignore_merges=vocabulary.pre in _IGNORE_MERGES)
    )
    core.pre_tokenizer = pre_tokenizers.Sequence(_steps(vocabulary.pre))
    return core


def _steps(pre: str) -> list[pre_tokenizers.PreTokenizer]:
    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if pre == "gpt-2":
        return [words]
    if pre == "smollm":
        return [pre_tokenizers.Digits(individual_digits=True), words]
    if pre == "falcon":
        threes = pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), "isolated")
        return [pre_tokenizers.Punctuation("contiguous"), words, pre_tokenizers.Digits(), threes]
    split = pre_tokenizers.Split(Regex(_SPLITS[pre]), "isolated")
    return [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
