"""Physical lines: numbering, byte order mark, and files that are no text."""

from pathlib import Path

import pytest

from timechat.data.files.lines import MAX_LINE_BYTES, check_text, read_lines
from timechat.errors import DataError


def write(folder: Path, content: bytes) -> Path:
    path = folder / "file.jsonl"
    path.write_bytes(content)
    return path


def test_lines_are_numbered_from_one_and_lose_their_ends(tmp_path: Path) -> None:
    lines = list(read_lines(write(tmp_path, b"a\r\n\nb")))
    assert [(line.number, line.text) for line in lines] == [(1, "a"), (2, ""), (3, "b")]


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    assert [x.text for x in read_lines(write(tmp_path, b"\xef\xbb\xbfa\n\xef\xbb\xbfb\n"))] == [
        "a",
        "\ufeffb",
    ]


def test_separators_of_unicode_do_not_end_a_line(tmp_path: Path) -> None:
    assert len(list(read_lines(write(tmp_path, "a\u2028b\x85c\x0bd\n".encode())))) == 1


@pytest.mark.parametrize(("extra", "fault"), [(0, ""), (1, "line_too_long"), (99, "line_too_long")])
def test_a_line_over_eight_megabytes_is_a_fault_of_that_line_only(
    tmp_path: Path, extra: int, fault: str
) -> None:
    content = b"a\n" + b"x" * (MAX_LINE_BYTES + extra) + b"\nb\n"
    lines = list(read_lines(write(tmp_path, content)))
    assert [(line.number, line.fault) for line in lines] == [(1, ""), (2, fault), (3, "")]
    assert lines[2].text == "b"


def test_bytes_that_are_not_utf8_and_nul_bytes_are_faults_with_a_column(tmp_path: Path) -> None:
    lines = list(read_lines(write(tmp_path, b"ok\ncaf\xe9\na\0b\n")))
    assert [line.fault for line in lines] == ["", "not_utf8", "nul_byte"]
    assert "0xe9 at column 4" in lines[1].detail


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"\xef\xbb\xbf", "is empty"),
        (b"\xd0\xcf\x11\xe0old", "old Office"),
        (b"%PDF-1.7", "PDF"),
        (b"\x1f\x8b\x08", "cut off"),
        (b"a,b\n\0\1", "binary"),
        (b"a,b\rc,d\r", "lone CR"),
    ],
)
def test_what_is_no_text_is_refused_with_its_path(
    tmp_path: Path, content: bytes, said: str
) -> None:
    path = write(tmp_path, content)
    with pytest.raises(DataError, match=said) as caught:
        check_text(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no file at"):
        check_text(tmp_path / "missing")
    with pytest.raises(DataError, match="cannot be read"):
        check_text(tmp_path)
