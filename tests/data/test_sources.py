"""Files to rows: planted defects at known lines, columns, folders, refusals."""

import json
from pathlib import Path

import pytest

from timechat.conversation import Conversation
from timechat.data.sources import Source, open_sources, read_questions
from timechat.data.verdicts import Drop
from timechat.errors import DataError
from timechat.recipe import Data

GOOD = '{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}'


def write(path: Path, content: str | bytes) -> str:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def only(name: str, **columns: str) -> Source:
    (source,) = open_sources([name], Data(columns=columns))
    return source


def faults(source: Source) -> dict[int, str]:
    return {r.line: r.found.reason for r in source.rows() if isinstance(r.found, Drop)}


def pairs(source: Source) -> list[tuple[str, ...]]:
    found = [r.found for r in source.rows() if isinstance(r.found, Conversation)]
    return [tuple(m.content for m in row.messages) for row in found]


def test_planted_defects_are_found_at_their_lines(tmp_path: Path) -> None:
    lines = [GOOD, "", "{", "[]", GOOD.replace("user", "usr"), GOOD.replace('"a"', "3"), GOOD]
    content = "\n".join(lines).encode() + b"\n\xff\n" + GOOD.encode()
    source = only(write(tmp_path / "a.jsonl", content))
    assert faults(source) == {
        2: "blank_line",
        3: "not_json",
        4: "not_an_object",
        5: "unknown_role",
        6: "content_not_a_string",
        8: "not_utf8",
    }
    assert len(list(source.rows())) == 9


def test_windows_line_ends_and_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    source = only(write(tmp_path / "a.jsonl", b"\xef\xbb\xbf" + f"{GOOD}\r\n{GOOD}\r\n".encode()))
    assert faults(source) == {}
    table = only(write(tmp_path / "a.csv", b"\xef\xbb\xbftext,label\r\nhi,x\r\n"))
    assert pairs(table) == [("hi", "x")]


def test_a_table_reports_first_physical_lines(tmp_path: Path) -> None:
    text = 'text,label\n"one\ntwo",x\n\na,b,c\n,,\nlast,y\n'
    source = only(write(tmp_path / "a.csv", text))
    assert faults(source) == {4: "blank_line", 5: "ragged_row", 6: "blank_line"}
    assert [r.line for r in source.rows()] == [2, 4, 5, 6, 7]
    assert pairs(source) == [("one\ntwo", "x"), ("last", "y")]


def test_a_table_in_curly_quotes_is_read_with_its_header(tmp_path: Path) -> None:
    text = "“ReviewText”,“SentimentLabel”\n“Good, really\ngood”,“Positive”\n“Bad”,“Negative”\n"
    source = only(write(tmp_path / "a.csv", text))
    assert pairs(source) == [("Good, really\ngood", "Positive"), ("Bad", "Negative")]
    assert source.notes["columns"] == {"user": "ReviewText", "assistant": "SentimentLabel"}


def test_named_columns_fill_every_role(tmp_path: Path) -> None:
    text = "n;who;said;answer;topic\n7;Be brief.;hi;ho;greetings\n8; ;a;b;\n"
    source = only(
        write(tmp_path / "a.csv", text),
        user="said",
        assistant="answer",
        system="who",
        group="topic",
        id="n",
    )
    first, second = (r.found for r in source.rows())
    assert isinstance(first, Conversation)
    assert isinstance(second, Conversation)
    assert (first.id, first.group) == ("7", "greetings")
    assert [m.role for m in first.messages] == ["system", "user", "assistant"]
    assert [m.role for m in second.messages] == ["user", "assistant"]
    assert second.group == ""


@pytest.mark.parametrize(
    ("header", "columns", "said"),
    [
        ("x,y", {}, "--column user=NAME"),
        ("question,answer,text,label", {}, "more than one reading"),
        ("x,y", {"user": "x", "assistant": "z"}, "no column 'z'"),
        ("text,label", {"user": "txt", "assistant": "label"}, "did you mean 'text'"),
        ("x,y", {"user": "x"}, "but not assistant"),
        ("x,y", {"usr": "x"}, "did you mean 'user'"),
        ("x,x,y", {"user": "x", "assistant": "y"}, "2 columns named"),
    ],
)
def test_columns_that_cannot_be_found_are_refused(
    tmp_path: Path, header: str, columns: dict[str, str], said: str
) -> None:
    name = write(tmp_path / "a.csv", header + "\n1,2\n")
    with pytest.raises(DataError) as caught:
        open_sources([name], Data(columns=columns))
    assert said in str(caught.value)


def test_a_folder_stands_for_its_data_files_in_order(tmp_path: Path) -> None:
    write(tmp_path / "b.jsonl", GOOD)
    write(tmp_path / "a.csv", "text,label\nx,y\n")
    write(tmp_path / "c.tsv", "text\tlabel\nx,1\ty\n")
    write(tmp_path / "readme.md", "no data")
    write(tmp_path / ".hidden.jsonl", GOOD)
    sources = open_sources([str(tmp_path)], Data())
    assert [s.name for s in sources] == [f"{tmp_path}/{n}" for n in ("a.csv", "b.jsonl", "c.tsv")]
    assert pairs(sources[2]) == [("x,1", "y")]


def test_files_that_hold_no_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no file at"):
        open_sources([str(tmp_path / "none.jsonl")], Data())
    with pytest.raises(DataError, match="without data files"):
        open_sources([str(tmp_path)], Data())
    with pytest.raises(DataError, match=r"ends in \.docx"):
        open_sources([write(tmp_path / "a.docx", "text")], Data())
    with pytest.raises(DataError, match="only blank lines"):
        open_sources([write(tmp_path / "a.csv", "\n\n")], Data())
    write(tmp_path / "card.json", "{}")
    with pytest.raises(DataError, match="is a prepared folder"):
        open_sources([str(tmp_path)], Data())


def test_questions_are_all_usable_or_refused_with_the_line(tmp_path: Path) -> None:
    good = write(tmp_path / "good.jsonl", f"{GOOD}\n\n")
    assert [q.reference for q in read_questions(Path(good))] == ["a"]
    bad = write(tmp_path / "bad.jsonl", f"{GOOD}\n{GOOD.replace('assistant', 'user')}\n")
    with pytest.raises(DataError, match="line 2: no_answer"):
        read_questions(Path(bad))


def test_accepted_answers_are_read(tmp_path: Path) -> None:
    row = json.loads(GOOD) | {"answers": ["a", "A."]}
    (question,) = read_questions(Path(write(tmp_path / "a.jsonl", json.dumps(row))))
    assert question.answers == ("a", "A.")
