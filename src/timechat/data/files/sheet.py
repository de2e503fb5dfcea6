"""Excel workbooks: the rows of one sheet, each with its row number.

Values are read as the workbook last showed them; a formula is never worked out, and a cell whose
formula has no saved value is marked (`Unsaved`). Blank rows are no rows, however many stand
between two that are. Which columns hold what is `data.shapes`'.
"""

from __future__ import annotations

import datetime
import zipfile
import zlib
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from itertools import zip_longest
from typing import Any, BinaryIO
from xml.etree.ElementTree import ParseError

import openpyxl
from openpyxl.utils.exceptions import InvalidFileException

from timechat.data.files.blobs import BOMB_BYTES, BOMB_RATIO, Blob
from timechat.data.files.table import Record
from timechat.data.items import Unsaved
from timechat.errors import DataError

# What Excel itself can hold. A row of a higher number is damage, and the way there would be long.
MAX_ROWS = 1 << 20
# What openpyxl, the zip archive and the XML in it raise over a file that is not whole.
DAMAGE = (zipfile.BadZipFile, InvalidFileException, ParseError, zlib.error, EOFError,
          KeyError, ValueError, TypeError, OSError)  # fmt: skip


def list_sheets(blob: Blob) -> list[str]:
    """The names of the sheets that hold rows."""
    with _open(blob, True) as book:
        return [
            name
            for name in book.sheetnames
            if hasattr(book[name], "iter_rows")
            and any(any(cell is not None for cell in row) for row in _values(book[name], blob))
        ]


def read_sheet(blob: Blob, sheet: str) -> Iterator[Record]:
    """The sheet's rows that are not blank, the header first."""
    with _open(blob, True) as book, _open(blob, False) as formulas:
        written, shown = _values(formulas[sheet], blob), _values(book[sheet], blob)
        width = 0
        for number, (cells, texts) in enumerate(zip_longest(shown, written, fillvalue=()), 1):
            if all(cell is None for cell in texts):
                continue
            fields = tuple(
                Unsaved(text) if cell is None and _is_formula(text) else cell_text(cell)
                for cell, text in zip_longest(cells, texts)
            )
            # Trailing empty cells are no columns; the header says how many there are.
            if not width:
                fields = _trimmed(fields, 1)
                width = len(fields)
            yield Record(number, _trimmed(fields, width) + ("",) * (width - len(fields)))


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


def _values(sheet: Any, blob: Blob) -> Iterator[tuple[Any, ...]]:
    """Every row of the sheet from the first on, the missing ones empty."""
    # How many rows there are is counted, not believed: openpyxl would stop at a size written into
    # the file, which some programs never bring up to date.
    sheet.reset_dimensions()
    rows = enumerate(sheet.iter_rows(values_only=True), 1)
    while True:
        try:
            number, row = next(rows)
        except StopIteration:
            return
        except DAMAGE as error:
            raise DataError(
                f"{blob.name} sheet {sheet.title!r} is damaged: {_why(error)}; save it anew"
            ) from None
        if number > MAX_ROWS:
            raise DataError(
                f"{blob.name} sheet {sheet.title!r} counts more than {MAX_ROWS:,} rows, which no "
                "Excel sheet can hold: it is damaged; save it anew"
            )
        yield row


@contextmanager
def _open(blob: Blob, data_only: bool) -> Generator[Any]:
    with blob.place.open("rb") as file:
        # Opened and closed here: openpyxl leaves a workbook open that it fails over.
        book = _load(blob, file, data_only)
        with closing(book):
            yield book


def _load(blob: Blob, file: BinaryIO, data_only: bool) -> Any:
    try:
        with zipfile.ZipFile(file) as archive:
            size = sum(info.file_size for info in archive.infolist())
        if size > max(BOMB_BYTES, BOMB_RATIO * blob.place.stat().st_size):
            raise DataError(f"{blob.name} unpacks to {size:,} bytes: a bomb, it is not read")
        return openpyxl.load_workbook(file, read_only=True, data_only=data_only)
    except DAMAGE as error:
        raise DataError(f"{blob.name} is no readable Excel workbook: {_why(error)}") from None


def _why(error: Exception) -> str:
    return (str(error) or type(error).__name__).split("\n")[0][:200]
