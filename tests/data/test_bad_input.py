"""Hostile and broken files: each ends in a counted reason or one clear error, in bounded memory."""

from __future__ import annotations

import gc
import gzip
import io
import json
import tempfile
import tracemalloc
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import openpyxl
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

import timechat.data.files.blobs as blobs
from timechat.conversation import Conversation
from timechat.data.describe import describe
from timechat.data.sources import Source, open_sources
from timechat.data.verdicts import Drop
from timechat.errors import DataError, UserError
from timechat.recipe import Data

GOOD = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
LINE = json.dumps(GOOD)


def only(path: Path, **settings: Any) -> Source:
    (source,) = open_sources([str(path)], Data(**settings))
    return source


def reasons(path: Path, **settings: Any) -> dict[int, str]:
    rows = only(path, **settings).rows()
    return {row.line: row.found.reason for row in rows if isinstance(row.found, Drop)}


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_a_torn_last_line_costs_itself_alone(tmp_path: Path) -> None:
    assert reasons(write(tmp_path / "a.jsonl", f"{LINE}\n{LINE[:30]}")) == {2: "not_json"}
    array = json.dumps([GOOD] * 3, indent=1)
    torn = write(tmp_path / "a.json", array[: len(array) - 40])
    assert list(reasons(torn).values()) == ["not_json"]


def test_a_broken_value_of_an_array_does_not_take_the_next_ones_along(tmp_path: Path) -> None:
    lines = [LINE + "," for _ in range(8)]
    lines[2] = '{"messages": [{"role": "user, "content": "q"}]},'
    lines[4] = '{"messages": [{"role": "user"},'
    lines[6] = '{"messages": ,},'
    path = write(tmp_path / "a.json", "[\n" + "\n".join(lines) + "\n" + LINE + "]")
    assert reasons(path) == {4: "not_json", 6: "not_json", 8: "not_json"}
    assert sum(isinstance(row.found, Conversation) for row in only(path).rows()) == 6


def test_what_stands_behind_an_array_is_counted_unless_it_closes_its_object(
    tmp_path: Path,
) -> None:
    array = json.dumps([GOOD] * 3)
    behind = write(tmp_path / "a.json", array + "\n<!-- made by a tool -->\n]]")
    assert reasons(behind) == {2: "not_json"}
    assert reasons(write(tmp_path / "b.json", f"{array}\n{LINE}")) == {2: "not_json"}
    assert reasons(write(tmp_path / "c.json", array + "\n\n")) == {}
    closed = f'{{"data": {array}, "version": [1], "by": {{"x": "]"}}}}\n'
    assert reasons(write(tmp_path / "d.json", closed)) == {}
    assert reasons(write(tmp_path / "e.json", closed + "}")) == {1: "not_json"}
    two = f'{{"train": {array},\n "validation": {array}}}'
    assert reasons(write(tmp_path / "f.json", two)) == {2: "not_read"}
    row = next(r for r in only(tmp_path / "f.json").rows() if isinstance(r.found, Drop))
    assert "second list of rows under 'validation'" in str(row.found)


def test_a_file_of_which_no_row_can_be_read_says_why_before_anything_runs(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", "{'question': 'q', 'answer': 'a'}\n" * 3)
    said = list(describe(only(path)))
    assert said[1].startswith("  none of the first rows can be read; line 1: not_json (Expecting")


def test_mixed_encodings_are_faults_of_their_lines(tmp_path: Path) -> None:
    good = json.dumps(GOOD | {"id": "é"}, ensure_ascii=False).encode()
    bad = good.decode().encode("cp1252")
    path = write(tmp_path / "a.jsonl", b"\n".join([good, bad, good, bad, bad]))
    assert reasons(path) == {2: "not_utf8", 4: "not_utf8", 5: "not_utf8"}


def test_a_line_of_a_hundred_megabytes_is_a_fault_in_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with path.open("wb") as file:
        file.write(LINE.encode() + b'\n{"messages": "')
        for _ in range(100):
            file.write(b"x" * (1 << 20))
        file.write(b'"}\n' + LINE.encode() + b"\n")
    array = tmp_path / "a.json"
    array.write_bytes(b"[" + path.read_bytes().strip().replace(b"\n", b",\n") + b"]")
    source, other = only(path), only(array)
    tracemalloc.start()
    found = [r.found.reason for r in source.rows() if isinstance(r.found, Drop)]
    found += [r.found.reason for r in other.rows() if isinstance(r.found, Drop)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == ["line_too_long", "line_too_long"]
    assert peak < 60 << 20


@pytest.mark.parametrize("ending", ["jsonl.gz", "jsonl.zst", "zip"])
def test_a_packed_line_of_a_hundred_megabytes_ends_in_little_memory(
    tmp_path: Path, ending: str
) -> None:
    path = tmp_path / f"a.{ending}"
    head, tail = f'{LINE}\n{{"messages": "'.encode(), f'"}}\n{LINE}\n'.encode()
    with _packed(path) as file:
        file.write(head)
        for _ in range(100):
            file.write(b"0" * (1 << 20))
        file.write(tail)
    tracemalloc.start()
    found = [r.found.reason for r in only(path).rows() if isinstance(r.found, Drop)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == ["line_too_long"]
    assert peak < 60 << 20


@contextmanager
def _packed(path: Path) -> Iterator[IO[bytes]]:
    """A file to write to, packed as the name's ending says."""
    with ExitStack() as stack:
        if path.suffix == ".zip":
            archive = stack.enter_context(zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED))
            yield stack.enter_context(archive.open("a.jsonl", "w"))
        elif path.suffix == ".gz":
            yield stack.enter_context(gzip.open(path, "wb", compresslevel=1))
        else:
            raw = stack.enter_context(path.open("wb"))
            yield stack.enter_context(zstandard.ZstdCompressor().stream_writer(raw))


@pytest.mark.parametrize("bomb", ["[" * 200_000, '{"a":' * 100_000, '{"messages": ' + "[" * 10**6])
def test_nesting_without_end_is_a_reason(tmp_path: Path, bomb: str) -> None:
    assert reasons(write(tmp_path / "a.jsonl", f"{LINE}\n{bomb}\n")) == {2: "not_json"}


def test_packed_bombs_are_refused_while_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blobs, "BOMB_BYTES", 1 << 20)
    monkeypatch.setattr(blobs, "BOMB_RATIO", 20)
    bomb = LINE.encode() + b" " * (32 << 20)
    write(tmp_path / "a.jsonl.gz", gzip.compress(bomb))
    write(tmp_path / "a.jsonl.zst", zstandard.compress(bomb))
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.jsonl", bomb)
    write(tmp_path / "a.zip", packed.getvalue())
    for name in ("a.jsonl.gz", "a.jsonl.zst", "a.zip"):
        with pytest.raises(DataError, match="a bomb"):
            list(only(tmp_path / name).rows())


@pytest.mark.parametrize(
    "name", ["../a.jsonl", "/etc/a.jsonl", "x/../../a.jsonl", "..\\a.jsonl", "C:\\a.jsonl"]
)
def test_a_path_that_leads_out_of_an_archive_is_refused(tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(name, LINE)
    with pytest.raises(DataError, match="leads out of the archive"):
        only(tmp_path / "a.zip")


def test_a_link_out_of_a_folder_or_in_an_archive_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    secret = write(tmp_path / "secret.jsonl", LINE)
    (folder / "link.jsonl").symlink_to(secret)
    with pytest.raises(DataError, match="leads out of the folder"):
        open_sources([str(folder)], Data())
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        info = zipfile.ZipInfo("a.jsonl")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(DataError, match="a link"):
        only(tmp_path / "a.zip")


def test_nul_bytes_are_faults_of_their_lines(tmp_path: Path) -> None:
    good = "\n".join([LINE] * 5)
    assert reasons(write(tmp_path / "a.jsonl", f"{good}\n{LINE}\0\n{LINE}\n")) == {6: "nul_byte"}
    table = "text,label\n" + "q,a\n" * 50 + "q\0,a\nq,a\n"
    assert reasons(write(tmp_path / "a.csv", table)) == {52: "nul_byte"}


def test_ragged_rows_and_headers_that_repeat(tmp_path: Path) -> None:
    table = "text,label,note,note\nq,a,1,2\nq,a\nq,a,1,2,3\nq,a,1,2\n"
    path = write(tmp_path / "a.csv", table)
    assert reasons(path) == {3: "ragged_row", 4: "ragged_row"}
    with pytest.raises(DataError, match="2 columns named 'note'"):
        only(path, columns={"group": "note"})
    with pytest.raises(DataError, match="no names that tell the roles"):
        only(write(tmp_path / "b.csv", "text,text,label\n1,2,3\n"))


def test_ten_thousand_columns_and_ten_thousand_labels(tmp_path: Path) -> None:
    names = ",".join(f"c{i}" for i in range(10_000))
    row = ",".join("x" * 10_000)
    path = write(tmp_path / "wide.csv", f"{names},text,label\n{row},q,a\n{row},q\n")
    assert reasons(path) == {3: "ragged_row"}
    with pytest.raises(DataError, match="and 9980 more") as caught:
        only(write(tmp_path / "odd.csv", f"{names}\n{row}\n"))
    assert len(str(caught.value)) < 2000
    many = "text,label\n" + "".join(f"question {i},label {i}\n" for i in range(10_000))
    assert reasons(write(tmp_path / "many.csv", many)) == {}


def test_a_formula_is_never_worked_out(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    sheet = book.active
    assert sheet is not None
    for row in (["text", "label"], ["q", "a"], ["=1+1", "b"], ["'=x", 7], ["q2", 7.0]):
        sheet.append(row)
    book.save(tmp_path / "a.xlsx")
    source = only(tmp_path / "a.xlsx")
    found = [row.found for row in source.rows()]
    assert reasons(tmp_path / "a.xlsx") == {3: "formula_without_value"}
    said = [tuple(m.content for m in f.messages) for f in found if isinstance(f, Conversation)]
    assert said == [("q", "a"), ("'=x", "7"), ("q2", "7")]


def test_a_formula_matters_only_where_its_cell_is_read(tmp_path: Path) -> None:
    rows = {1: ["text", "label", "length"]} | {i: ["q", "a", "=LEN(A2)"] for i in range(2, 6)}
    rows[4][1] = '=IF(A4="q","a","b")'
    workbook(tmp_path / "a.xlsx", rows)
    assert reasons(tmp_path / "a.xlsx") == {4: "formula_without_value"}
    columns = {"user": "text", "assistant": "length"}
    assert set(reasons(tmp_path / "a.xlsx", columns=columns)) == {2, 3, 4, 5}


def workbook(path: Path, rows: dict[int, list[str]]) -> bytes:
    """A workbook with these rows at these numbers and none between."""
    book = openpyxl.Workbook()
    sheet = book.active
    assert sheet is not None
    for number, cells in rows.items():
        for column, text in enumerate(cells, 1):
            sheet.cell(number, column).value = text
    book.save(path)
    return path.read_bytes()


def changed(path: Path, old: bytes, new: bytes) -> None:
    """The first sheet of a workbook with some of its XML replaced."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    sheet = "xl/worksheets/sheet1.xml"
    assert old in parts[sheet]
    parts[sheet] = parts[sheet].replace(old, new)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)


def test_rows_below_any_number_of_blank_ones_are_read(tmp_path: Path) -> None:
    workbook(tmp_path / "a.xlsx", {1: ["text", "label"], 2: ["q", "a"], 30_000: ["q", "b", "c"]})
    found = list(only(tmp_path / "a.xlsx").rows())
    assert [row.line for row in found] == [2, 30_000]
    assert reasons(tmp_path / "a.xlsx") == {30_000: "ragged_row"}


def test_a_sheet_is_read_to_its_end_whatever_size_it_says_it_has(tmp_path: Path) -> None:
    path = tmp_path / "a.xlsx"
    workbook(path, {1: ["text", "label"]} | {i: ["q", "a"] for i in range(2, 50)})
    changed(path, b'<dimension ref="A1:B49"', b'<dimension ref="A1:A2"')
    assert [row.line for row in only(path).rows()] == list(range(2, 50))
    assert reasons(path) == {}


@pytest.mark.parametrize("number", [b"2000000000", b"junk"])
def test_a_row_number_that_no_sheet_can_have_is_one_error(tmp_path: Path, number: bytes) -> None:
    path = tmp_path / "a.xlsx"
    workbook(path, {1: ["text", "label"], 2: ["q", "a"], 9: ["q", "b"]})
    changed(path, b'<row r="9"', b'<row r="' + number + b'"')
    with pytest.raises(DataError, match=r"a\.xlsx sheet 'Sheet' (counts more|is damaged)"):
        list(only(path).rows())


def test_a_sheet_that_breaks_off_is_one_error(tmp_path: Path) -> None:
    path = tmp_path / "a.xlsx"
    workbook(path, {1: ["text", "label"], 2: ["q", "a"], 9: ["q", "b"]})
    changed(path, b"</sheetData>", b"<row")
    with pytest.raises(DataError, match="is damaged") as caught:
        list(only(path).rows())
    assert "\n" not in str(caught.value)


def test_what_is_unpacked_to_disk_is_bounded_and_gone_after_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    content = workbook(tmp_path / "a.xlsx", {1: ["text", "label"], 2: ["q", "a"]})
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.xlsx", content)
    source = only(tmp_path / "a.zip")
    assert len(list(scratch.iterdir())) == 1
    assert [row.line for row in source.rows()] == [2]
    assert source.path == tmp_path / "a.zip"
    del source
    gc.collect()
    assert list(scratch.iterdir()) == []
    monkeypatch.setattr(blobs, "COPY_BYTES", len(content) - 1)
    with pytest.raises(DataError, match=r"a\.zip/a\.xlsx unpacks to more than"):
        only(tmp_path / "a.zip")
    gc.collect()
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.parquet", b"PAR1 and nothing else"),
        ("a.arrow", b"ARROW1\0\0junk"),
        ("a.xlsx", b"PK\x03\x04junk"),
        ("a.zip", b"PK\x03\x04junk"),
        ("a.jsonl.gz", gzip.compress(LINE.encode() * 100)[:-20]),
        ("a.jsonl.zst", b"\x28\xb5\x2f\xfdjunk"),
    ],
)
def test_a_damaged_file_is_one_clear_error(tmp_path: Path, name: str, content: bytes) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(DataError) as caught:
        list(only(path).rows())
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@given(
    content=st.binary(max_size=300),
    name=st.sampled_from(
        ["a.jsonl", "a.json", "a.csv", "a.txt", "a.md", "a.parquet", "a.xlsx", "a.zip",
         "a.jsonl.gz", "a.jsonl.zst", "a.arrow"]
    ),
)  # fmt: skip
def test_any_bytes_end_in_rows_drops_or_one_error(content: bytes, name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder) / name, content)
        with suppress(UserError):
            for source in open_sources([str(path)], Data()):
                for row in source.rows():
                    assert isinstance(row.found, Conversation | Drop)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)


@given(
    values=st.lists(st.dictionaries(st.text(max_size=5), JSON_VALUES), min_size=1, max_size=6),
    indent=st.sampled_from([None, 0, 1, 4]),
    chunk=st.sampled_from([1, 3, 64, 1 << 20]),
)
def test_an_array_is_read_as_json_reads_it_whatever_its_layout(
    values: list[dict[str, Any]], indent: int | None, chunk: int
) -> None:
    import timechat.data.files.jsons as jsons

    whole = json.dumps(values, indent=indent, ensure_ascii=False)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(jsons, "CHUNK_BYTES", chunk)
        path = write(Path(folder) / "a.json", whole.encode("utf-8", "surrogatepass"))
        items = list(jsons.read_values(path, inside=True))
    assert [item.fields for item in items] == values
