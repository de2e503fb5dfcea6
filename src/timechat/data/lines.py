"""The physical lines of a text file, numbered from 1, in bounded memory.

It knows about bytes, UTF-8 and line ends, and refuses files that are no text at all. What a line
means is `data.rows`' and `data.table`'s business.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from timechat.errors import DataError

MAX_LINE_BYTES = 8 << 20
HEAD_BYTES = 64 << 10
BOM = b"\xef\xbb\xbf"
# First bytes of formats that people hand over by mistake; text never starts with them.
SIGNATURES = {
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "a zip archive or a spreadsheet",
    b"PAR1": "Parquet",
    b"%PDF": "PDF",
}


@dataclass(frozen=True, slots=True)
class Line:
    """One line without its end. With a `fault` the text is not to be used as content."""

    number: int
    text: str
    fault: str = ""
    detail: str = ""


def check_text(path: Path) -> None:
    """Raise DataError unless `path` is a readable, non-empty text file."""
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except FileNotFoundError:
        raise DataError(f"no file at {path}: check the path") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    if not head.removeprefix(BOM):
        raise DataError(f"{path} is empty: give a file with rows")
    for signature, name in SIGNATURES.items():
        if head.startswith(signature):
            raise DataError(f"{path} is {name}, not UTF-8 text: save it as CSV or JSONL in UTF-8")
    if b"\0" in head:
        raise DataError(
            f"{path} is a binary file (a NUL byte at offset {head.index(0)}): "
            "give UTF-8 text, CSV or JSONL"
        )
    if b"\n" not in head and b"\r" in head.rstrip(b"\r"):
        raise DataError(
            f"{path} ends its lines with a lone CR (old Macintosh): save it with LF or CRLF"
        )


def read_lines(path: Path) -> Iterator[Line]:
    """Every line of `path`; at most `MAX_LINE_BYTES` of it are in memory at a time."""
    try:
        with path.open("rb") as file:
            number = 0
            while raw := file.readline(MAX_LINE_BYTES + 2):
                number += 1
                yield _decode(number, raw.removeprefix(BOM) if number == 1 else raw, file)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None


def _decode(number: int, raw: bytes, file: BinaryIO) -> Line:
    size = len(raw)
    if not raw.endswith(b"\n") and size > MAX_LINE_BYTES:
        while (more := file.readline(HEAD_BYTES)) and not more.endswith(b"\n"):
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
