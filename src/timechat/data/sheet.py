"""Excel workbooks: the rows of one sheet, each with its row number.

Values are read as the workbook last showed them; a formula is never worked out, and a cell whose
formula has no saved value is a fault of its row. Which columns hold what is `data.shapes`'.
"""

from __future__ import annotations

import datetime
import zipfile
from collections.abc import Iterator
from contextlib import closing
from itertools import zip_longest
from typing import Any

import openpyxl
from openpyxl.utils.exceptions import InvalidFileException

from timechat.data.blobs import BOMB_BYTES, BOMB_RATIO, Blob
from timechat.data.table import Record
from timechat.errors import DataError

# Beyond this many blank rows in a row there is nothing more: a formatted column has a million.
MAX_BLANK_ROWS = 10_000


def list_sheets(blob: Blob) -> list[str]:
    """The names of the sheets that hold rows."""
    with closing(_open(blob, True)) as book:
        return [
            name
            for name in book.sheetnames
            if hasattr(book[name], "iter_rows") and any(True for _ in _values(book[name]))
        ]


def read_sheet(blob: Blob, sheet: str) -> Iterator[Record]:
    """The sheet's rows that are not blank, the header first."""
    with closing(_open(blob, True)) as book, closing(_open(blob, False)) as formulas:
        written = formulas[sheet].iter_rows(values_only=True)
        shown = book[sheet].iter_rows(values_only=True)
        width = blank = 0
        for number, (cells, texts) in enumerate(zip_longest(shown, written, fillvalue=()), 1):
            if all(cell is None for cell in texts):
                blank += 1
                if blank > MAX_BLANK_ROWS:
                    return
                continue
            blank = 0
            fields = tuple(cell_text(cell) for cell in cells)
            # Trailing empty cells are no columns; the header says how many there are.
            if not width:
                fields = _trimmed(fields, 1)
                width = len(fields)
            fields = _trimmed(fields, width) + ("",) * (width - len(fields))
            lost = [i for i, text in enumerate(texts) if _is_formula(text) and cells[i] is None]
            if lost:
                detail = f"column {lost[0] + 1} holds a formula without a saved value"
                yield Record(number, (), "formula_without_value", detail)
            else:
                yield Record(number, fields)


def cell_text(value: Any) -> str:
    """A cell as the text a person would copy out of it."""
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    if isinstance(value, datetime.datetime) and value.time() == datetime.time():
        return value.date().isoformat()
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return str(value)


def _trimmed(fields: tuple[str, ...], least: int) -> tuple[str, ...]:
    end = len(fields)
    while end > least and not fields[end - 1].strip():
        end -= 1
    return fields[:end]


def _is_formula(value: Any) -> bool:
    return isinstance(value, str) and value.startswith("=") and len(value) > 1


def _values(sheet: Any) -> Iterator[tuple[Any, ...]]:
    for number, row in enumerate(sheet.iter_rows(values_only=True)):
        if any(cell is not None for cell in row):
            yield row
        if number > MAX_BLANK_ROWS:
            return


def _open(blob: Blob, data_only: bool) -> Any:
    if blob.member:
        raise DataError(f"{blob.name} is a workbook inside an archive: unpack the archive")
    try:
        with zipfile.ZipFile(blob.path) as archive:
            size = sum(info.file_size for info in archive.infolist())
        if size > max(BOMB_BYTES, BOMB_RATIO * blob.path.stat().st_size):
            raise DataError(f"{blob.name} unpacks to {size:,} bytes: a bomb, it is not read")
        return openpyxl.load_workbook(blob.path, read_only=True, data_only=data_only)
    except FileNotFoundError:
        raise DataError(f"no file at {blob.name}: check the path") from None
    except (zipfile.BadZipFile, InvalidFileException, KeyError, ValueError, OSError) as error:
        raise DataError(f"{blob.name} is no readable Excel workbook: {error}") from None
