"""Which encoding a text file is in, and its bytes as UTF-8.

A byte order mark decides, then UTF-8 if that is what the bytes are. Only what cannot be UTF-8 is
guessed, and never silently: the guess stands on the card, and `data.encoding` overrides it.
"""

from __future__ import annotations

import codecs
import io
import re
from typing import BinaryIO, cast

import charset_normalizer

from timechat.errors import DataError

SAMPLE_BYTES = 4 << 20
MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# More bytes over 127 than this, and it is no Western text with accents in it.
WESTERN_SHARE = 0.15
# JSON is UTF-8 by definition (RFC 8259): there another encoding is believed only when reading it
# as UTF-8 would lose more than this share of the lines, and several of them.
JSON_LOSS, JSON_LINES = 0.10, 3
_UNDEFINED = re.compile(rb"[\x81\x8d\x8f\x90\x9d]")
_HIGH = re.compile(rb"[\x80-\xff]")


def check_encoding(name: str) -> str:
    """`name` as Python calls it. Raises DataError for an encoding that there is not."""
    try:
        codec = codecs.lookup(name)
        "a".encode(codec.name)
    except (LookupError, ValueError, TypeError):
        raise DataError(
            f"data.encoding = {name!r}: no such encoding; write for example utf-8, cp1252, utf-16"
        ) from None
    return codec.name


def find_encoding(sample: bytes, is_json: bool) -> tuple[str, str]:
    """The encoding of a file that begins with `sample`, and how that was told."""
    for mark, name in MARKS:
        if sample.startswith(mark):
            return name, "byte order mark"
    if name := _wide(sample):
        return name, "every other byte is NUL"
    if _is_utf8(sample):
        return "utf-8", ""
    if b"\0" in sample or _holds_utf8(sample) or (is_json and not _ruined(sample)):
        return "utf-8", "some lines are damaged"
    return _legacy(sample), "guessed: the bytes are not UTF-8"


def as_utf8(stream: BinaryIO, encoding: str) -> BinaryIO:
    """`stream` in UTF-8; what is not valid in `encoding` becomes U+FFFD, which cleaning finds."""
    if encoding in ("utf-8", "utf-8-sig"):
        return stream
    return cast(BinaryIO, io.BufferedReader(_Recoded(stream, encoding), 1 << 16))


class _Recoded(io.RawIOBase):
    def __init__(self, inner: BinaryIO, encoding: str) -> None:
        super().__init__()
        self._inner = inner
        self._decoder = codecs.getincrementaldecoder(encoding)("replace")
        self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        room = memoryview(cast(bytearray, buffer))
        while not self._ready:
            piece = self._inner.read(1 << 16)
            self._ready = self._decoder.decode(piece, final=not piece).encode("utf-8", "replace")
            if not piece:
                break
        given = self._ready[: len(room)]
        self._ready = self._ready[len(room) :]
        room[: len(given)] = given
        return len(given)


def _is_utf8(sample: bytes) -> bool:
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        decoder.decode(sample, final=False)
    except UnicodeDecodeError:
        return False
    return True


def _wide(sample: bytes) -> str:
    """UTF-16 without a mark, told by the NUL bytes of its Latin letters."""
    head = sample[:4096]
    if len(head) < 4:
        return ""
    even, odd = head[0::2].count(0), head[1::2].count(0)
    half = len(head) // 2
    if odd > 0.4 * half and even < 0.05 * half:
        return "utf-16-le"
    if even > 0.4 * half and odd < 0.05 * half:
        return "utf-16-be"
    return ""


def _holds_utf8(sample: bytes) -> bool:
    """Whether a line holds text beyond ASCII that is valid UTF-8: then the others are damaged."""
    return any(_HIGH.search(line) and _is_utf8(line) for line in sample.split(b"\n")[:-1])


def _ruined(sample: bytes) -> bool:
    lines = sample.split(b"\n")
    lost = sum(not _is_utf8(line) for line in lines)
    return lost >= JSON_LINES and lost > JSON_LOSS * len(lines)


def _legacy(sample: bytes) -> str:
    num_high = len(_HIGH.findall(sample))
    if num_high <= WESTERN_SHARE * len(sample) and not _UNDEFINED.search(sample):
        return "cp1252"
    best = charset_normalizer.from_bytes(sample[: 64 << 10]).best()
    return best.encoding if best is not None else "cp1252"
