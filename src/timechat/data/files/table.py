"""CSV and TSV: physical lines to records of fields, whatever quotes they are wrapped in.

Straight quotes follow RFC 4180. A field that begins with “ ends at ” before a delimiter or the end
of a line, as word processors leave them, within 100 lines; curly quotes anywhere else are text.
Which columns hold what is `data.columns`' business.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from timechat.data.files.lines import MAX_LINE_BYTES, Line, Text, read_lines

DELIMITERS = (",", ";", "\t", "|", "^", "~", "\x1f", "\x01")
SNIFFED_RECORDS = 20
# With the bytes of a line, what bounds the memory of one row.
MAX_ROW_LINES = 100_000
# A curly quote may just be text, so its other half is looked for this far and no further.
MAX_CURLY_LINES = 100
_OPENING = re.compile(r' *(["“])')
_CURLY = re.compile("[“”]")


@dataclass(frozen=True, slots=True)
class Record:
    """One row of a table; `line` is its first physical line. With a `fault` it has no fields."""

    line: int
    fields: tuple[str, ...] = ()
    fault: str = ""
    detail: str = ""

    @property
    def is_blank(self) -> bool:
        return not self.fault and not any(field.strip() for field in self.fields)


class _BrokenError(Exception):
    """The record cannot be read; `lines` of the window belong to it."""

    def __init__(self, lines: int, reason: str, detail: str) -> None:
        super().__init__(reason)
        self.lines = lines
        self.reason = reason
        self.detail = detail


class _Window:
    """The lines of the record being read, fetched one by one and only as far as is asked."""

    def __init__(self, lines: Iterator[Line]) -> None:
        self._source = lines
        self._lines: deque[Line] = deque()

    def has(self, index: int) -> bool:
        """Whether there is a line `index`, counted from the record's first."""
        while len(self._lines) <= index:
            line = next(self._source, None)
            if line is None:
                return False
            self._lines.append(line)
        return True

    def continues(self, index: int) -> bool:
        """Whether a field may go on in line `index`: it is there, and was short enough to keep."""
        return self.has(index) and self._lines[index].fault != "line_too_long"

    def __getitem__(self, index: int) -> Line:
        return self._lines[index]

    def release(self, count: int) -> None:
        for _ in range(count):
            self._lines.popleft()


def read_records(source: Text | Path, delimiter: str) -> Iterator[Record]:
    """Every record of the file, the header too, bad ones with their fault."""
    window = _Window(read_lines(source))
    while window.has(0):
        record, num_lines = _read_record(window, delimiter)
        window.release(num_lines)
        yield record


def _read_record(window: _Window, delimiter: str) -> tuple[Record, int]:
    """The record at the window's start, and how many lines it took."""
    first = window[0]
    if first.fault == "line_too_long":
        return Record(first.number, (), first.fault, first.detail), 1
    if '"' not in first.text and "“" not in first.text:
        num_lines, fields = 1, first.text.split(delimiter)
    else:
        try:
            fields, num_lines = _Reader(window, delimiter).read()
        except _BrokenError as error:
            return Record(first.number, (), error.reason, error.detail), error.lines
    bad = next((window[i] for i in range(num_lines) if window[i].fault), None)
    if bad is not None:
        return Record(first.number, (), bad.fault, bad.detail), num_lines
    return Record(first.number, tuple(fields)), num_lines


def sniff(source: Text | Path) -> str:
    """The delimiter under which the first records agree best with their header."""

    def agreement(delimiter: str) -> tuple[float, int]:
        records = islice(read_records(source, delimiter), SNIFFED_RECORDS)
        sample = [record for record in records if not record.is_blank]
        width = len(sample[0].fields) if sample else 0
        if width < 2:
            return 0.0, width
        return sum(len(r.fields) == width for r in sample) / len(sample), width

    return max(DELIMITERS, key=agreement)


class _Reader:
    """Reads the record at the window's start."""

    def __init__(self, window: _Window, delimiter: str) -> None:
        self.window = window
        self.delimiter = delimiter
        self.index = 0
        self.at = 0
        self.text_until = (0, 0)

    @property
    def text(self) -> str:
        return self.window[self.index].text

    def read(self) -> tuple[list[str], int]:
        """The fields, and how many lines they took. Raises _BrokenError."""
        fields: list[str] = []
        while True:
            fields.append(self._field())
            if self.at == len(self.text):
                return fields, self.index + 1
            self.at += 1

    def _field(self) -> str:
        opening = _OPENING.match(self.text, self.at)
        if opening is not None and opening[1] == '"':
            return self._straight(opening.end())
        if opening is not None and (wrapped := self._curly(opening.end())) is not None:
            return wrapped
        start = self.at
        end = self.text.find(self.delimiter, start)
        self.at = len(self.text) if end < 0 else end
        return self.text[start : self.at]

    def _straight(self, start: int) -> str:
        parts: list[str] = []
        size = 0
        index, text = self.index, self.text
        while True:
            quote = text.find('"', start)
            if quote < 0:
                parts += [text[start:], "\n"]
                size += len(text) - start
                index, start = index + 1, 0
                too_far = size > MAX_LINE_BYTES or index - self.index > MAX_ROW_LINES
                if too_far or not self.window.continues(index):
                    # Only this line is given up: the lines after it may well be rows.
                    raise _BrokenError(1, "unclosed_quote", 'a field begins with " and never ends')
                text = self.window[index].text
                continue
            parts.append(text[start:quote])
            if text.startswith('"', quote + 1):
                parts.append('"')
                start = quote + 2
                continue
            end = self._end(text, quote + 1)
            if end is None:
                raise self._misplaced(index, quote)
            self.index, self.at = index, end
            return "".join(parts)

    def _misplaced(self, index: int, quote: int) -> _BrokenError:
        line = self.window[index].number
        # A quote at the very start of a line more likely opens a row than ends an older one.
        lines = index if quote == 0 and index else index + 1
        where = f'line {line} column {quote + 1}: a " inside a quoted field is written ""'
        return _BrokenError(lines, "misplaced_quote", where)

    def _curly(self, start: int) -> str | None:
        """The field wrapped in “ ”, or None when its “ turns out to be text."""
        if (self.index, start) < self.text_until:
            return None
        parts: list[str] = []
        size, depth = 0, 1
        index, text = self.index, self.text
        while True:
            close, stop, depth = self._scan(text, start, depth)
            if close is not None:
                end = self._end(text, close + 1)
                assert end is not None
                self.index, self.at = index, end
                return "".join([*parts, text[start:close]])
            parts += [text[start:], "\n"]
            size += len(text) - start
            too_far = size > MAX_LINE_BYTES or index - self.index >= MAX_CURLY_LINES
            if stop is not None or too_far or not self.window.continues(index + 1):
                # What was looked through here need not be again: a row full of “ stays linear.
                self.text_until = (index, len(text) if stop is None else stop)
                return None
            index, start = index + 1, 0
            text = self.window[index].text

    def _scan(self, text: str, start: int, depth: int) -> tuple[int | None, int | None, int]:
        """Where on this line the field's ” is, or where it is clear that there is none, and how
        many “ are open after the line.

        The ” that pairs with the first “ is taken when it ends a field; otherwise the first ” that
        does, unless another field begins with “ before it.
        """
        first: int | None = None
        paired = False
        for mark in _CURLY.finditer(text, start):
            at = mark.start()
            if mark[0] == "“":
                if paired and self._begins(text, at):
                    return None, at, depth
                depth += 1
                continue
            depth -= 1
            if self._end(text, mark.end()) is not None:
                if depth == 0 or paired:
                    return at, None, depth
                first = at if first is None else first
            if depth == 0 and first is not None:
                break
            paired = paired or depth == 0
        if first is None and paired:
            return None, len(text), depth
        return first, None, depth

    def _begins(self, text: str, at: int) -> bool:
        """Whether a field begins at `at`, not counting spaces."""
        while at and text[at - 1] == " ":
            at -= 1
        return at == 0 or text[at - 1] == self.delimiter

    def _end(self, text: str, at: int) -> int | None:
        """The position of the delimiter or line end that follows, over spaces; None if neither."""
        while text.startswith(" ", at):
            at += 1
        return at if at == len(text) or text.startswith(self.delimiter, at) else None
