"""JSON that is not one row a line: an array, values one after another, or an array in an object.

Streaming: only the value being read is in memory, and the line that it begins at is known. A value
that is broken inside costs itself alone: its end is found by its brackets, or, where they do not
close, by the next line that is indented and opened as it was.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from timechat.data.files.lines import MAX_LINE_BYTES, Text, open_text
from timechat.data.items import Item, json_item

CHUNK_BYTES = 1 << 20
# What is looked at behind an array; more than this is rows, not the end of an object.
MAX_REST_BYTES = 8 << 20
# Keys under which exports put the list of their rows.
WRAPPERS = ("data", "rows", "items", "records", "examples", "instances", "train")
_WRAPPED = re.compile(rb'\s*\{\s*"(%s)"\s*:\s*\[\s*\{' % "|".join(WRAPPERS).encode())
_MARKS = re.compile(rb'["\\{}\[\]]')
_BLANK = b" \t\r\n,"


def is_array(head: bytes) -> bool:
    """Whether a file that begins with `head` is one array of objects."""
    opening = head.lstrip()
    return opening.startswith(b"[") and opening[1:].lstrip()[:1] in (b"{", b"")


def is_wrapped(head: bytes) -> bool:
    """Whether a file that begins with `head` is an object whose first value is such an array."""
    return _WRAPPED.match(head) is not None


def is_stream(head: bytes) -> bool:
    """Whether objects go over several lines: the first line opens one and does not end it."""
    first = head.lstrip().split(b"\n", 1)[0].strip()
    return first.startswith(b"{") and not first.endswith(b"}") and b"\n" in head.strip()


def read_values(source: Text | Path, inside: bool) -> Iterator[Item]:
    """Every object of the file: the elements of its array if `inside`, else its values.

    What stands behind the array is one item more, with its fault: rows may be among it.
    """
    with open_text(source) as stream:
        yield from _Scanner(stream, inside).items()


class _Scanner:
    """Cuts a stream of bytes into values at the outermost brackets."""

    def __init__(self, stream: BinaryIO, inside: bool) -> None:
        self._stream = stream
        self._buffer = b""
        self._at = 0
        self._line = 1
        self._inside = inside
        self._ended = False
        self._torn = False
        self._is_wrapped = False
        # What stands before the value on its line; None when that is more than blanks.
        self._indent: bytes | None = b""

    def items(self) -> Iterator[Item]:
        if self._inside:
            self._enter()
        while self._skip_blank():
            opening = self._buffer[self._at : self._at + 1]
            if self._inside and opening == b"]":
                self._at += 1
                yield from self._behind()
                return
            yield self._value() if opening in b"{[" else self._scalar()
        if self._inside and not self._torn:
            yield Item(self._line, None, "not_json", "the array never ends: the file is cut off")

    def _behind(self) -> Iterator[Item]:
        """What is left after the array: nothing, or the rest of the object that it stands in."""
        if not self._skip_blank():
            return
        line, rest = self._line, self._buffer[self._at :]
        while len(rest) < MAX_REST_BYTES and self._fill():
            rest = self._buffer
        if self._is_wrapped and (more := _others(rest)) is not None:
            if lists := [name for name, value in more.items() if _is_rows(value)]:
                detail = f"a second list of rows under {lists[0]!r}: give it as a file of its own"
                yield Item(line, None, "not_read", detail)
            return
        detail = f"{_quoted(rest)} stands behind the end of the array: it is not read"
        yield Item(line, None, "not_json", detail)

    def _enter(self) -> None:
        """Go past the bracket that opens the array."""
        self._fill()
        end = self._buffer.index(b"[") + 1
        self._is_wrapped = self._buffer.lstrip().startswith(b"{")
        self._line += self._buffer.count(b"\n", 0, end)
        self._at = end

    def _fill(self) -> bool:
        """Read more; False at the end of the file. Keeps what has not been consumed."""
        piece = b"" if self._ended else self._stream.read(CHUNK_BYTES)
        if not piece:
            self._ended = True
            return False
        self._buffer = self._buffer[self._at :] + piece
        self._at = 0
        return True

    def _skip_blank(self) -> bool:
        self._indent = b"" if self._line == 1 else None
        while True:
            rest = self._buffer[self._at :].lstrip(_BLANK)
            end = len(self._buffer) - len(rest)
            skipped = self._buffer[self._at : end]
            if b"\n" in skipped:
                self._indent = skipped[skipped.rindex(b"\n") + 1 :]
            self._line += skipped.count(b"\n")
            self._at = end
            if rest:
                return True
            if not self._fill():
                return False

    def _value(self) -> Item:
        """The object or list that begins here."""
        depth, position, quoted = 0, self._at, False
        while True:
            for mark in _MARKS.finditer(self._buffer, position):
                if mark.start() < position:
                    continue
                sign = mark[0]
                if sign == b"\\":
                    position = mark.end() + 1
                elif sign == b'"':
                    quoted = not quoted
                elif not quoted:
                    depth += 1 if sign in b"{[" else -1
                    if depth == 0:
                        return self._cut(mark.end())
            position = max(position, len(self._buffer)) - self._at
            if len(self._buffer) - self._at > MAX_LINE_BYTES:
                return self._too_long(depth, position + self._at, quoted)
            if not self._fill():
                return self._broken("the value never ends: the file is cut off")
            position += self._at

    def _cut(self, end: int) -> Item:
        raw = self._buffer[self._at : end]
        item = decode_item(raw, self._line)
        if item.fault == "not_json" and self._next_opening(raw):
            return self._broken(item.detail)
        self._line += raw.count(b"\n")
        self._at = end
        return item

    def _broken(self, detail: str) -> Item:
        """A value without an end of its own: it ends where the next one is seen to begin."""
        line = self._line
        rest = self._buffer[self._at :]
        end = self._next_opening(rest) or len(rest)
        self._torn = end == len(rest)
        self._line += rest.count(b"\n", 0, end)
        self._at += end
        return Item(line, None, "not_json", detail)

    def _next_opening(self, raw: bytes) -> int:
        """Where in `raw` a line begins as its first one did; 0 where none does."""
        if self._indent is None:
            return 0
        return raw.find(b"\n" + self._indent + raw[:1], 1) + 1

    def _too_long(self, depth: int, position: int, quoted: bool) -> Item:
        """Go past a value of which only the length is kept; its brackets have been seen so far."""
        if self._next_opening(self._buffer[self._at :]):
            return self._broken("its brackets do not close")
        line, size = self._line, 0
        while depth:
            size += len(self._buffer) - self._at
            self._line += self._buffer.count(b"\n", self._at)
            position -= len(self._buffer)
            self._at = len(self._buffer)
            if not self._fill():
                break
            for mark in _MARKS.finditer(self._buffer, position):
                if mark.start() < position:
                    continue
                if mark[0] == b"\\":
                    position = mark.end() + 1
                elif mark[0] == b'"':
                    quoted = not quoted
                elif not quoted:
                    depth += 1 if mark[0] in b"{[" else -1
                    if depth == 0:
                        size += mark.end()
                        self._line += self._buffer.count(b"\n", 0, mark.end())
                        self._at = mark.end()
                        break
            position = max(position, len(self._buffer))
        detail = f"{size:,} bytes, at most {MAX_LINE_BYTES:,} are read"
        return Item(line, None, "line_too_long", detail)

    def _scalar(self) -> Item:
        """What is neither object nor list: up to the next comma, bracket or line end."""
        line = self._line
        end = re.compile(rb"[,\]\n]").search(self._buffer, self._at + 1)
        while end is None and len(self._buffer) - self._at < MAX_LINE_BYTES and self._fill():
            end = re.compile(rb"[,\]\n]").search(self._buffer, self._at + 1)
        stop = len(self._buffer) if end is None else end.start()
        raw = self._buffer[self._at : stop]
        self._at = stop
        return decode_item(raw, line)


def _others(rest: bytes) -> dict[str, Any] | None:
    """The keys behind the array of an object, of which `rest` is the end; None when it is none."""
    try:
        more: object = json.loads(b'{"":0' + (b"," if rest.startswith(b'"') else b"") + rest)
    except (ValueError, RecursionError):
        return None
    return cast(dict[str, Any], more) if isinstance(more, dict) else None


def _is_rows(value: object) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _quoted(rest: bytes) -> str:
    return repr(rest[:40].decode("utf-8", "replace"))


def decode_item(raw: bytes, line: int) -> Item:
    if b"\0" in raw:
        return Item(line, None, "nul_byte", f"a NUL byte at byte {raw.index(0) + 1} of the value")
    try:
        return json_item(raw.decode("utf-8"), line)
    except UnicodeDecodeError as error:
        detail = f"byte 0x{raw[error.start]:02x} at byte {error.start + 1}: save it as UTF-8"
        return Item(line, None, "not_utf8", detail)
