"""Tokens to text while they come: whole characters only, stop strings held back and left out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

# What a cut-off character decodes to.
REPLACEMENT = "�"


class TextStream:
    """One answer's text. `feed` returns what may be shown now; `end` what was still held back.

    A piece that could be the beginning of a stop string waits until that is decided; what is
    `stopped` by one ends before it.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self.stopped = False
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._stream = DecodeStream(skip_special_tokens=True)
        self._ids: list[int] = []
        self._decoded = 0  # characters that the stream has given out
        self._held = ""

    def feed(self, token: int) -> str:
        self._ids.append(token)
        new = self._stream.step(self._tokenizer, token)
        if not new:
            return ""
        self._decoded += len(new)
        return self._release(new)

    def end(self) -> str:
        """The rest, once no token follows: held text and the bytes of a cut-off character."""
        if self.stopped:
            return ""
        whole = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        out = self._release(whole[self._decoded :])
        if not self.stopped:
            out, self._held = out + self._held, ""
        return out

    def _release(self, new: str) -> str:
        text = self._held + new
        found = [at for at in (text.find(s) for s in self._stop) if at >= 0]
        if found:
            self.stopped = True
            self._held = ""
            return text[: min(found)]
        keep = max((overlap(text, s) for s in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def bytes_of(tokenizer: Tokenizer, token: int) -> bytes:
    """The bytes that a token stands for, a part of a character too."""
    text = tokenizer.decode([token], skip_special_tokens=False)
    if REPLACEMENT not in text:
        return text.encode("utf-8", "replace")
    piece = tokenizer.id_to_token(token) or ""
    if found := _FALLBACK.fullmatch(piece):
        return bytes([int(found[1], 16)])
    spelled = _byte_letters()
    if piece and all(letter in spelled for letter in piece):
        return bytes(spelled[letter] for letter in piece)
    return text.encode()


# How SentencePiece writes a byte that is no whole character.
_FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@cache
def _byte_letters() -> dict[str, int]:
    """The letter that byte-level vocabularies write for each byte, as GPT-2's did: printable ones
    as they are, the others from 256 on, in their order."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    letters = {chr(byte): byte for byte in plain}
    return letters | {chr(256 + place): byte for place, byte in enumerate(others)}


def overlap(text: str, stop: str) -> int:
    """The longest end of `text` that is a beginning of `stop` (and not all of it)."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
