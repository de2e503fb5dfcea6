"""Files to conversations, streaming, each row with the physical line it begins at.

A row that cannot be read is a `Drop` with its reason, never an exception; a file that cannot be
read is a DataError before the first row. What is asked of a readable row is `data.clean`'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from timechat.conversation import Conversation
from timechat.data.clean import Drop, clean, cleaning_steps
from timechat.data.columns import Columns, check_wanted, choose_columns, to_conversation
from timechat.data.lines import check_text, read_lines
from timechat.data.rows import BadRowError, parse_row
from timechat.data.table import Record, read_records, sniff
from timechat.errors import DataError

EXTENSIONS = (".jsonl", ".csv", ".tsv")
PREPARED_CARD = "card.json"


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a file: a conversation, or why it is none."""

    line: int
    found: Conversation | Drop


@dataclass(slots=True)
class Source:
    """One checked file. `name` is its path as the user gave it.

    `notes` say how it is read; what is only known at the end is there once `rows` is exhausted.
    """

    name: str
    path: Path
    columns: Columns | None = None
    delimiter: str = ""
    notes: dict[str, Any] = field(default_factory=dict[str, Any])

    def rows(self) -> Iterator[Row]:
        """Every row of the file in order: lines of a JSONL file, records of a table."""
        if self.columns is not None:
            yield from self._table_rows(self.columns)
            return
        ignored: set[str] = set()
        for line in read_lines(self.path):
            if line.fault:
                yield Row(line.number, Drop(line.fault, line.detail))
            elif not line.text.strip():
                yield Row(line.number, Drop("blank_line"))
            else:
                yield Row(line.number, self._parsed(line.text, line.number, ignored))
        if ignored:
            self.notes["ignored_keys"] = sorted(ignored)

    def _parsed(self, text: str, line: int, ignored: set[str]) -> Conversation | Drop:
        try:
            return parse_row(text, self.name, line, ignored)
        except BadRowError as error:
            return error.drop

    def _table_rows(self, columns: Columns) -> Iterator[Row]:
        header_seen = False
        for record in read_records(self.path, self.delimiter):
            if not header_seen and not record.is_blank:
                header_seen = True
                continue
            try:
                yield Row(record.line, to_conversation(record, columns, self.name))
            except BadRowError as error:
                yield Row(record.line, error.drop)


def open_sources(names: Iterable[str], columns: Mapping[str, str]) -> list[Source]:
    """The files behind `names`, each checked; a folder stands for the data files in it.

    `columns` maps a role to a column's name and is for tables only. Raises DataError.
    """
    check_wanted(columns)
    return [
        _open(shown, path, columns) for name in names for shown, path in _files(name, Path(name))
    ]


def read_questions(path: Path) -> list[Conversation]:
    """Every row of a file of questions. Raises DataError when one of them is unusable.

    Nobody would see a ledger of drops here, so there are none: a bad row is an error.
    """
    questions: list[Conversation] = []
    steps = cleaning_steps()
    for source in open_sources([str(path)], {}):
        for row in source.rows():
            verdict = row.found
            if not isinstance(verdict, Drop):
                verdict = clean(verdict, steps)
            if not isinstance(verdict, Drop):
                questions.append(verdict[0])
            elif verdict.reason != "blank_line":
                detail = f" ({verdict.detail})" if verdict.detail else ""
                raise DataError(
                    f"{source.name} line {row.line}: {verdict.reason}{detail}; "
                    "mend or remove this row"
                )
    if not questions:
        raise DataError(f"{path} holds no questions: give conversation rows")
    return questions


def _files(name: str, path: Path) -> list[tuple[str, Path]]:
    shown = name.encode("utf-8", "replace").decode()
    if not path.is_dir():
        return [(shown, path)]
    if (path / PREPARED_CARD).is_file():
        raise DataError(
            f"{shown} is a prepared folder: give it as `prepared`, not as a file of rows"
        )
    files = [
        p
        for p in path.iterdir()
        if p.suffix.lower() in EXTENSIONS and p.is_file() and not p.name.startswith(".")
    ]
    if not files:
        raise DataError(f"{shown} is a folder without data files: put {_kinds()} files into it")
    return [
        (f"{shown.rstrip('/')}/{p.name.encode('utf-8', 'replace').decode()}", p)
        for p in sorted(files)
    ]


def _open(shown: str, path: Path, columns: Mapping[str, str]) -> Source:
    extension = path.suffix.lower()
    if extension not in EXTENSIONS and path.exists():
        raise DataError(
            f"{shown} ends in {extension or 'nothing'}: files of rows are {_kinds()}; convert it, "
            "or rename it if it is one of them"
        )
    check_text(path)
    if extension == ".jsonl":
        return Source(shown, path, notes={"format": "jsonl"})
    delimiter = "\t" if extension == ".tsv" else sniff(path)
    chosen = choose_columns(_header(shown, path, delimiter).fields, columns, shown)
    notes: dict[str, Any] = {
        "format": extension[1:],
        "delimiter": delimiter,
        "columns": chosen.names,
        "columns_from": "the header's names" if chosen.guessed else "the user",
    }
    if chosen.ignored:
        notes["ignored_columns"] = chosen.ignored
    return Source(shown, path, chosen, delimiter, notes)


def _header(shown: str, path: Path, delimiter: str) -> Record:
    header = next((r for r in read_records(path, delimiter) if not r.is_blank), None)
    if header is None:
        raise DataError(f"{shown} has only blank lines: give a header and rows")
    if header.fault:
        raise DataError(f"{shown} line {header.line}, the header: {header.fault} ({header.detail})")
    return header


def _kinds() -> str:
    return ", ".join(EXTENSIONS)
