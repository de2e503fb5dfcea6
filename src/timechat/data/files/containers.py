"""What a file is, told by its first bytes before its name, and its items one by one.

JSON in its variants, tables, Parquet, Arrow, workbooks and text. The items' shape is
`data.shapes`' to tell.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from timechat.data.files.blobs import Blob, on_disk, read_head
from timechat.data.files.columnar import column_names, read_arrow, read_parquet
from timechat.data.files.encodings import SAMPLE_BYTES, check_encoding, find_encoding
from timechat.data.files.jsons import is_array, is_stream, is_wrapped, read_values
from timechat.data.files.lines import Text, check_text, read_lines
from timechat.data.files.prose import read_passages
from timechat.data.files.sheet import list_sheets, read_sheet
from timechat.data.files.table import Record, read_records, sniff
from timechat.data.items import Item, json_item
from timechat.data.shapes.registry import ENOUGH, PAIR_SHAPES
from timechat.errors import DataError
from timechat.recipe import Data

TABLES = (".csv", ".tsv", ".tab", ".psv")
JSON = (".json", ".jsonl", ".ndjson")
PROSE = (".txt", ".text", ".md", ".markdown", ".rst")
COLUMNAR = (".parquet", ".arrow")
SHEETS = (".xlsx", ".xlsm")
SAMPLE_ROWS = 200
# A file of another name is JSON when it opens with an object's first key: prose may open with [.
_OBJECTS = re.compile(rb'\s*(\[\s*)?\{\s*"')
_SEPARATOR = re.compile(r'"?sep=(.)"?\s*$')


@dataclass(slots=True)
class Container:
    """One list of items. `names` are its columns as its header has them, if it has one."""

    kind: str
    read: Callable[[], Iterator[Item]]
    part: str = ""
    names: tuple[str, ...] | None = None
    notes: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def is_table(self) -> bool:
        return self.names is not None

    def sample(self) -> list[Item]:
        """The first items, the bad ones too."""
        return list(islice(self.read(), SAMPLE_ROWS))


def open_containers(blob: Blob, data: Data) -> list[Container]:
    """The containers in one file: a workbook has one for each sheet, all others have one.

    Raises DataError when the file cannot be read or is of no known kind.
    """
    head = read_head(blob, SAMPLE_BYTES)
    if head.startswith(b"PAR1") or blob.suffix == ".parquet":
        flat = on_disk(blob)
        return [Container("parquet", lambda: read_parquet(flat), names=tuple(column_names(flat)))]
    if head.startswith(b"ARROW1") or blob.suffix == ".arrow":
        flat = on_disk(blob)
        return [Container("arrow", lambda: read_arrow(flat))]
    if blob.suffix in SHEETS:
        return _sheets(on_disk(blob))
    # RFC 8259: JSON is UTF-8, so another encoding is believed less readily there.
    is_json = blob.suffix in JSON or _OBJECTS.match(head) is not None
    found, how = find_encoding(head, is_json)
    if data.encoding != "auto":
        found, how = check_encoding(data.encoding), "the user"
    text = Text(blob, found)
    check_text(text)
    container = _text_container(text, head, data)
    if how:
        container.notes |= {"encoding": found, "encoding_from": how}
    return [container]


def _text_container(text: Text, head: bytes, data: Data) -> Container:
    suffix = text.blob.suffix
    if suffix in TABLES:
        return _table(text, data)
    opening = _decoded(head, text).encode()
    looks_json = _OBJECTS.match(opening) is not None
    if suffix in JSON or (looks_json and suffix not in (".md", ".markdown")):
        return _json(text, opening)
    if suffix == ".txt" and (table := _table_in_disguise(text, data)) is not None:
        return table
    if suffix in PROSE:
        size = data.passage_characters
        return Container("text", lambda: read_passages(text, size), notes={"passages_of": size})
    raise DataError(
        f"{text.blob.name} ends in {suffix or 'nothing'}: files of rows are {kinds()}; convert it, "
        "or rename it if it is one of them"
    )


def kinds() -> str:
    return (
        ", ".join((*JSON, *TABLES, *COLUMNAR, ".xlsx", ".txt", ".md"))
        + ", also as .gz, .zst or .zip"
    )


def _json(text: Text, head: bytes) -> Container:
    if is_array(head):
        return Container("json array", lambda: read_values(text, inside=True))
    if is_wrapped(head):
        return Container("json array in an object", lambda: read_values(text, inside=True))
    if text.blob.suffix == ".json" and is_stream(head):
        return Container("json values", lambda: read_values(text, inside=False))
    return Container("jsonl", lambda: _json_lines(text))


def _json_lines(text: Text) -> Iterator[Item]:
    for line in read_lines(text):
        if line.fault:
            yield Item(line.number, None, line.fault, line.detail)
        elif not line.text.strip():
            yield Item(line.number, None, "blank_line")
        else:
            yield json_item(line.text, line.number)


def _decoded(head: bytes, text: Text) -> str:
    return head[: 64 << 10].decode(text.encoding, "replace").removeprefix("\ufeff")


def _table(text: Text, data: Data) -> Container:
    first = next(iter(read_lines(text)))
    declared = _SEPARATOR.match(first.text)
    if data.delimiter != "auto":
        delimiter = data.delimiter
    elif declared:
        delimiter = declared[1]
    else:
        delimiter = {".tsv": "\t", ".tab": "\t", ".psv": "|"}.get(text.blob.suffix) or sniff(text)

    def records() -> Iterator[Record]:
        every = read_records(text, delimiter)
        return islice(every, 1, None) if declared else every

    header = _header(records(), text.blob.name)
    kind = "tsv" if delimiter == "\t" else "csv"
    return _tabular(kind, records, header, {"delimiter": delimiter})


def _table_in_disguise(text: Text, data: Data) -> Container | None:
    """A table in a .txt file: every line of its opening has the same number of fields, and its
    header names the roles of a question and an answer."""
    delimiter = sniff(text) if data.delimiter == "auto" else data.delimiter
    records = [r for r in islice(read_records(text, delimiter), 20) if not r.is_blank]
    widths = {len(r.fields) for r in records}
    if len(widths) != 1 or widths == {1} or len(records) < 2:
        return None
    container = _table(text, data)
    fields = [item.fields for item in container.sample() if item.fields is not None]
    named = {name.strip() for name in data.columns.values()}
    wanted = bool(named) and named <= set(container.names or ())
    fits = any(sum(s.find(f) is not None for f in fields) >= ENOUGH * len(fields) > 0
               for s in PAIR_SHAPES)  # fmt: skip
    return container if wanted or fits else None


def _sheets(blob: Blob) -> list[Container]:
    names = list_sheets(blob)
    if not names:
        raise DataError(f"{blob.name} has no sheet with rows: give a header and rows")

    def of(sheet: str) -> Container:
        def records() -> Iterator[Record]:
            return read_sheet(blob, sheet)

        header = _header(records(), f"{blob.name} sheet {sheet!r}")
        made = _tabular("xlsx", records, header, {"sheet": sheet})
        made.part = sheet if len(names) > 1 else ""
        return made

    return [of(sheet) for sheet in names]


def _tabular(
    kind: str, records: Callable[[], Iterator[Record]], header: Record, notes: dict[str, Any]
) -> Container:
    names = tuple(name.strip() for name in header.fields)
    return Container(kind, lambda: _items(records(), names), names=names, notes=notes)


def _items(records: Iterator[Record], header: Sequence[str]) -> Iterator[Item]:
    names = _unique(header)
    header_seen = False
    for record in records:
        if record.fault:
            yield Item(record.line, None, record.fault, record.detail)
        elif record.is_blank:
            yield Item(record.line, None, "blank_line")
        elif not header_seen:
            header_seen = True
        elif len(record.fields) != len(names):
            detail = f"{len(record.fields)} fields, the header has {len(names)}"
            yield Item(record.line, None, "ragged_row", detail)
        else:
            yield Item(record.line, dict(zip(names, record.fields, strict=True)))


def _unique(header: Sequence[str]) -> list[str]:
    """The header with numbers on the names that are there more than once."""
    counts: dict[str, int] = {}
    for name in header:
        counts[name] = counts.get(name, 0) + 1
    seen: dict[str, int] = {}
    names: list[str] = []
    for name in header:
        seen[name] = seen.get(name, 0) + 1
        names.append(f"{name} ({seen[name]})" if counts[name] > 1 else name)
    return names


def _header(records: Iterator[Record], where: str) -> Record:
    header = next((r for r in records if not r.is_blank), None)
    if header is None:
        raise DataError(f"{where} has only blank lines: give a header and rows")
    if header.fault:
        raise DataError(f"{where} line {header.line}, the header: {header.fault} ({header.detail})")
    if sum(len(name) for name in header.fields) > 1 << 20:
        raise DataError(
            f"{where} has a header of {len(header.fields):,} fields and over a megabyte"
        )
    return header
