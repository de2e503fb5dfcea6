"""The physical lines of a text file, numbered from 1, in bounded memory.

It knows about lines, their ends and their faults. Packing is `blobs`' work, encodings are
`encodings`', and what a line means is `rows`' and `table`'s business.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from timechat.data.files.blobs import Blob, blob_of, open_blob
from timechat.data.files.encodings import as_utf8
from timechat.errors import DataError

MAX_LINE_BYTES = 8 << 20
HEAD_BYTES = 64 << 10
BOM = b"\xef\xbb\xbf"
# First bytes of formats that people hand over by mistake; text never starts with them.
SIGNATURES = {
    b"%PDF": "PDF",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"7z\xbc\xaf": "a 7z archive",
    b"Rar!": "a rar archive",
    b"\xd0\xcf\x11\xe0": "an old Office document (.xls or .doc)",
    b"SQLite format 3": "an SQLite database",
}
# One NUL in a line is damage to that line; many are no text at all.
MAX_NUL_SHARE = 0.01


@dataclass(frozen=True, slots=True)
class Text:
    """A file of text and the encoding to read it in."""

    blob: Blob
    encoding: str = "utf-8"


@dataclass(frozen=True, slots=True)
class Line:
    """One line without its end. With a `fault` the text is not to be used as content."""

    number: int
    text: str
    fault: str = ""
    detail: str = ""


@contextmanager
def open_text(source: Text | Path) -> Generator[BinaryIO]:
    """The bytes of a text file as UTF-8, unpacked."""
    text = Text(blob_of(source)) if isinstance(source, Path) else source
    with open_blob(text.blob) as stream:
        yield as_utf8(stream, text.encoding)


def check_text(source: Text | Path) -> None:
    """Raise DataError unless `source` is a readable, non-empty text file."""
    name = str(source) if isinstance(source, Path) else source.blob.name
    with open_text(source) as stream:
        head = stream.read(HEAD_BYTES)
    if not head.removeprefix(BOM).strip(b"\0"):
        raise DataError(f"{name} is empty: give a file with rows")
    for signature, kind in SIGNATURES.items():
        if head.startswith(signature):
            raise DataError(f"{name} is {kind}, not text: save it as CSV or JSONL in UTF-8")
    if head.count(0) > MAX_NUL_SHARE * len(head):
        raise DataError(
            f"{name} is a binary file (a NUL byte at offset {head.index(0)}): "
            "give UTF-8 text, CSV or JSONL"
        )
    if b"\n" not in head and b"\r" in head.rstrip(b"\r"):
        raise DataError(
            f"{name} ends its lines with a lone CR (old Macintosh): save it with LF or CRLF"
        )


def read_lines(source: Text | Path) -> Iterator[Line]:
    """Every line of `source`; at most `MAX_LINE_BYTES` of it are in memory at a time."""
    with open_text(source) as stream:
        number = 0
        while raw := stream.readline(MAX_LINE_BYTES + 2):
            number += 1
            yield _decode(number, raw.removeprefix(BOM) if number == 1 else raw, stream)


def _decode(number: int, raw: bytes, stream: BinaryIO) -> Line:
    size = len(raw)
    if not raw.endswith(b"\n") and size > MAX_LINE_BYTES:
        while (more := stream.readline(HEAD_BYTES)) and not more.endswith(b"\n"):
            size += len(more)
        size += len(more)
    raw = raw.removesuffix(b"\n").removesuffix(b"\r")
    if size > MAX_LINE_BYTES + 2 or len(raw) > MAX_LINE_BYTES:
        detail = f"{size:,} bytes, at most {MAX_LINE_BYTES:,} are read"
        return Line(number, "", "line_too_long", detail)
    if b"\0" in raw:
        text = raw.decode("utf-8", "replace")
        return Line(number, text, "nul_byte", f"a NUL byte at column {raw.index(0) + 1}")
    try:
        return Line(number, raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        detail = f"byte 0x{raw[error.start]:02x} at column {error.start + 1}: save it as UTF-8"
        return Line(number, raw.decode("utf-8", "replace"), "not_utf8", detail)
