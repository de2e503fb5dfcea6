"""Records of tables: straight quotes, curly quotes, and recovery after a broken one."""

import csv
import io
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from timechat.data.files.table import Record, read_records, sniff

# No lone CR (it would be a line end to `csv`) and no curly quotes (it knows none).
CELLS = st.text(
    st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="“”\ufeff")
    | st.sampled_from(',;"\n '),
    max_size=12,
)
WORDS = st.text(st.sampled_from("ab ,;\n\"é'"), max_size=12)


def records(text: str, delimiter: str = ",") -> list[Record]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.csv"
        path.write_bytes(text.encode())
        return list(read_records(path, delimiter))


def fields(text: str, delimiter: str = ",") -> list[tuple[str, ...]]:
    return [record.fields for record in records(text, delimiter)]


@given(
    rows=st.lists(st.lists(CELLS, min_size=2, max_size=4), min_size=1, max_size=6),
    delimiter=st.sampled_from([",", ";", "\t"]),
    end=st.sampled_from(["\n", "\r\n"]),
)
def test_what_csv_writes_is_read_back(rows: list[list[str]], delimiter: str, end: str) -> None:
    out = io.StringIO(newline="")
    csv.writer(out, delimiter=delimiter, lineterminator=end).writerows(rows)
    found = records(out.getvalue(), delimiter)
    assert [list(record.fields) for record in found] == rows
    line = 1
    for record, row in zip(found, rows, strict=True):
        assert record.line == line
        line += 1 + sum(cell.count("\n") for cell in row)


@given(rows=st.lists(st.lists(WORDS, min_size=2, max_size=4), min_size=1, max_size=6))
def test_a_table_wrapped_in_curly_quotes_is_read_as_it_is_written(rows: list[list[str]]) -> None:
    text = "".join(",".join(f"“{cell}”" for cell in row) + "\n" for row in rows)
    assert fields(text) == [tuple(row) for row in rows]


@given(text=st.text(st.sampled_from('ab,\n"“” '), max_size=40))
def test_no_text_breaks_the_reader_and_every_line_is_accounted_for(text: str) -> None:
    found = records(text)
    lines = [record.line for record in found]
    assert lines == sorted(set(lines))
    if '"' not in text and "“" not in text:
        assert len(found) == len(text.removesuffix("\n").split("\n")) - (text == "")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("“Loved it, truly”,“Positive”\n", ("Loved it, truly", "Positive")),
        ("“two\nlines”,x\n", ("two\nlines", "x")),
        ("“He said “hi”, and left”,x\n", ("He said “hi”, and left", "x")),
        ("“Great” film,Positive\n", ("“Great” film", "Positive")),
        ("“Great” film,“Positive”\n", ("“Great” film", "Positive")),
        ("a “great” film,x\n", ("a “great” film", "x")),
        ('"“Hello” he said",x\n', ("“Hello” he said", "x")),
        ("“never closed,x\n", ("“never closed", "x")),
        ("“”,x\n", ("", "x")),
        ('a, "b, c"\n', ("a", "b, c")),
        ('5" disk,x\n', ('5" disk', "x")),
    ],
)
def test_quotes(text: str, expected: tuple[str, ...]) -> None:
    assert fields(text) == [expected]


def test_an_unclosed_quote_costs_one_line_and_not_the_rest_of_the_file() -> None:
    found = records('a,b\n"open,c\nd,e\nf,g\n')
    assert [(r.line, r.fault) for r in found] == [(1, ""), (2, "unclosed_quote"), (3, ""), (4, "")]


def test_a_stray_quote_does_not_eat_the_quoted_row_that_ends_it() -> None:
    found = records('"oops,a\nb,c\n"fine, really",d\n')
    assert [(r.line, r.fault) for r in found] == [(1, "misplaced_quote"), (3, "")]
    assert "line 3 column 1" in found[0].detail


def test_a_nul_byte_inside_a_quoted_field_spoils_that_record_only() -> None:
    found = records('"a\nb\0",c\nd,e\n')
    assert [(r.line, r.fault) for r in found] == [(1, "nul_byte"), (3, "")]


@pytest.mark.parametrize(
    ("text", "delimiter"),
    [
        ("text,label\na;b;c,x\n", ","),
        ("text;label\na,b;x\n", ";"),
        ("text\tlabel\na,b\tx\n", "\t"),
        ("a;b,c\nx,y\nz,w\n", ","),
        ("alone\nx\n", ","),
    ],
)
def test_the_delimiter_is_the_one_under_which_rows_agree(
    tmp_path: Path, text: str, delimiter: str
) -> None:
    path = tmp_path / "table.csv"
    path.write_text(text)
    assert sniff(path) == delimiter
