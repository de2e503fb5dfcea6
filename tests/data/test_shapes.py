"""Every shape in every container: recognised by looking, read alike, overridden by name."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from timechat.conversation import Conversation
from timechat.data.sources import Source, open_sources
from timechat.data.verdicts import Drop
from timechat.errors import DataError
from timechat.recipe import Data

Fields = dict[str, Any]
ROWS: dict[str, list[Fields]] = {
    "chat": [
        {
            "messages": [
                {"role": "user", "content": f"q{i}"},
                {"role": "assistant", "content": f"a{i}"},
            ]
        }
        for i in range(4)
    ],
    "sharegpt": [
        {"conversations": [{"from": "human", "value": f"q{i}"}, {"from": "gpt", "value": f"a{i}"}]}
        for i in range(4)
    ],
    "alpaca": [{"instruction": f"q{i}", "input": "", "output": f"a{i}"} for i in range(4)],
    "prompt_completion": [{"prompt": f"q{i}", "completion": f"a{i}"} for i in range(4)],
    "question_answer": [{"Question": f"q{i}", "Answer": f"a{i}"} for i in range(4)],
    "text_label": [{"text": f"q{i}", "label": f"a{i}"} for i in range(4)],
    "preference": [{"prompt": f"q{i}", "chosen": f"a{i}", "rejected": "no"} for i in range(4)],
    "kto": [{"prompt": f"q{i}", "completion": f"a{i}", "label": True} for i in range(4)],
}
FLAT = [name for name in ROWS if name not in ("chat", "sharegpt")]


def jsonl(rows: list[Fields]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def table(rows: list[Fields], delimiter: str = ",") -> bytes:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()


def workbook(rows: list[Fields]) -> bytes:
    book = openpyxl.Workbook()
    sheet = book.active
    assert sheet is not None
    sheet.append(list(rows[0]))
    for row in rows:
        sheet.append(list(row.values()))
    out = io.BytesIO()
    book.save(out)
    return out.getvalue()


def parquet(rows: list[Fields]) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), out)
    return out.getvalue()


def arrow(rows: list[Fields]) -> bytes:
    out = io.BytesIO()
    content = pa.Table.from_pylist(rows)
    with pa.ipc.new_stream(out, content.schema) as writer:
        writer.write_table(content)
    return out.getvalue()


def zipped(name: str, content: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(f"inner/{name}", content)
        archive.writestr(f"__MACOSX/._{name}", b"junk")
    return out.getvalue()


CONTAINERS: dict[str, Callable[[list[Fields]], bytes]] = {
    "a.jsonl": jsonl,
    "a.json": lambda rows: json.dumps(rows).encode(),
    "pretty.json": lambda rows: json.dumps(rows, indent=2).encode(),
    "wrapped.json": lambda rows: json.dumps({"data": rows}).encode(),
    "stream.json": lambda rows: "\n".join(json.dumps(row, indent=1) for row in rows).encode(),
    "a.jsonl.gz": lambda rows: gzip.compress(jsonl(rows)),
    "a.jsonl.zst": lambda rows: zstandard.compress(jsonl(rows)),
    "a.zip": lambda rows: zipped("rows.jsonl", jsonl(rows)),
    "a.zip.gz": lambda rows: gzip.compress(zipped("rows.jsonl.gz", gzip.compress(jsonl(rows)))),
    "a.parquet": parquet,
    "a.parquet.gz": lambda rows: gzip.compress(parquet(rows)),
    "parquet.zip": lambda rows: zipped("rows.parquet", parquet(rows)),
    "a.arrow": arrow,
    "arrow.zip": lambda rows: zipped("rows.arrow", arrow(rows)),
    "utf16.jsonl": lambda rows: jsonl(rows).decode().encode("utf-16"),
    "mark.jsonl": lambda rows: b"\xef\xbb\xbf" + jsonl(rows),
    "disguised.txt": jsonl,
}
TABLES: dict[str, Callable[[list[Fields]], bytes]] = {
    "a.csv": table,
    "semicolon.csv": lambda rows: table(rows, ";"),
    "bar.csv": lambda rows: table(rows, "|"),
    "a.tsv": lambda rows: table(rows, "\t"),
    "declared.csv": lambda rows: b"sep=;\r\n" + table(rows, ";"),
    "wide.csv": lambda rows: table(rows).decode().encode("utf-16"),
    "a.csv.gz": lambda rows: gzip.compress(table(rows)),
    "a.xlsx": workbook,
    "a.xlsx.zst": lambda rows: zstandard.compress(workbook(rows)),
    "xlsx.zip": lambda rows: zipped("rows.xlsx", workbook(rows)),
}


def only(path: Path, **settings: Any) -> Source:
    (source,) = open_sources([str(path)], Data(**settings))
    return source


def said(source: Source) -> list[tuple[str, ...]]:
    found = [row.found for row in source.rows()]
    assert not [f for f in found if isinstance(f, Drop)]
    return [
        tuple(m.content for m in row.messages) for row in found if isinstance(row, Conversation)
    ]


EXPECTED = [(f"q{i}", f"a{i}") for i in range(4)]


@pytest.mark.parametrize("shape", ROWS)
@pytest.mark.parametrize("name", CONTAINERS)
def test_every_shape_is_recognised_in_every_container(
    tmp_path: Path, shape: str, name: str
) -> None:
    path = tmp_path / name
    path.write_bytes(CONTAINERS[name](ROWS[shape]))
    source = only(path)
    assert source.shape == shape
    assert said(source) == EXPECTED


@pytest.mark.parametrize("shape", FLAT)
@pytest.mark.parametrize("name", TABLES)
def test_every_flat_shape_is_recognised_in_every_table(
    tmp_path: Path, shape: str, name: str
) -> None:
    path = tmp_path / name
    path.write_bytes(TABLES[name](ROWS[shape]))
    source = only(path)
    assert source.shape == shape
    assert said(source) == EXPECTED


def write(path: Path, *rows: Fields) -> Path:
    path.write_bytes(jsonl(list(rows)))
    return path


def test_the_rejected_answer_is_kept_beside_the_chosen_one(tmp_path: Path) -> None:
    rows: list[Fields] = [
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {
            "prompt": [{"role": "user", "content": "q"}],
            "chosen": [{"role": "assistant", "content": "a"}],
            "rejected": [{"role": "assistant", "content": "b"}],
        },
        {
            "chosen": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
            "rejected": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "b"}],
        },
        {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
        {
            "conversations": [{"from": "human", "value": "q"}],
            "chosen": {"from": "gpt", "value": "a"},
            "rejected": {"from": "gpt", "value": "b"},
        },
        {
            "input": {"messages": [{"role": "user", "content": "q"}]},
            "preferred_output": [{"role": "assistant", "content": "a"}],
            "non_preferred_output": [{"role": "assistant", "content": "b"}],
        },
    ]
    for i, row in enumerate(rows):
        source = only(write(tmp_path / f"{i}.jsonl", row))
        (found,) = [r.found for r in source.rows()]
        assert isinstance(found, Conversation)
        assert ([m.content for m in found.messages], found.rejected) == (["q", "a"], "b")
        assert "rejected" in found.to_dict()
        assert Conversation.from_dict(found.to_dict()) == found
        assert any("rejected one kept" in note for note in source.notes)


def test_an_answer_that_is_marked_bad_is_dropped_with_that_reason(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.jsonl",
        {"prompt": "q", "completion": "a", "label": True},
        {"prompt": "q", "completion": "b", "label": False},
    )
    found = [row.found for row in only(path).rows()]
    assert [f.reason if isinstance(f, Drop) else "" for f in found] == ["", "marked_bad"]


def test_tool_calls_are_written_as_text_that_any_template_carries(tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "clock", "parameters": {}}}]
    call = {"id": "1", "type": "function", "function": {"name": "clock", "arguments": '{"tz": 1}'}}
    row = {
        "tools": tools,
        "messages": [
            {"role": "user", "content": "What time is it?"},
            {"role": "assistant", "content": None, "tool_calls": [call, call]},
            {"role": "tool", "tool_call_id": "1", "content": "9:00"},
            {"role": "tool", "tool_call_id": "2", "content": "9:01"},
            {"role": "assistant", "content": "Nine."},
        ],
    }
    (found,) = [r.found for r in only(write(tmp_path / "a.jsonl", row), system="Be kind.").rows()]
    assert isinstance(found, Conversation)
    assert [m.role for m in found.messages] == ["system", "user", "assistant", "user", "assistant"]
    system, _, called, response, _ = (m.content for m in found.messages)
    assert system.startswith("Be kind.\n\n# Tools")
    assert json.dumps(tools[0]) in system
    assert called.count('<tool_call>\n{"name": "clock", "arguments": {"tz": 1}}\n</tool_call>') == 2
    assert response == (
        "<tool_response>\n9:00\n</tool_response>\n<tool_response>\n9:01\n</tool_response>"
    )
    (dropped,) = [r.found for r in only(tmp_path / "a.jsonl", tool_calls="drop").rows()]
    assert isinstance(dropped, Drop)
    assert dropped.reason == "tool_call"


def test_content_parts_are_joined_and_pictures_are_a_reason(tmp_path: Path) -> None:
    def row(*parts: Fields) -> Fields:
        return {
            "messages": [
                {"role": "user", "content": list(parts)},
                {"role": "assistant", "content": "a"},
            ]
        }

    text = {"type": "text", "text": "Look: "}
    path = write(
        tmp_path / "a.jsonl", row(text, text), row(text, {"type": "image_url", "image_url": {}})
    )
    kept, dropped = (r.found for r in only(path).rows())
    assert isinstance(kept, Conversation)
    assert kept.messages[0].content == "Look: Look: "
    assert isinstance(dropped, Drop)
    assert dropped.reason == "not_text"


def test_an_input_follows_its_instruction_and_a_history_comes_first(tmp_path: Path) -> None:
    row = {"instruction": "Add.", "input": "1 2", "output": "3", "history": [["Hi", "Hello"]]}
    assert said(only(write(tmp_path / "a.jsonl", row))) == [("Hi", "Hello", "Add.\n\n1 2", "3")]


def test_class_numbers_get_the_names_that_the_hub_gave_them(tmp_path: Path) -> None:
    content = pa.table({"text": ["q"], "label": [1]})
    features = {"label": {"names": ["bad", "good"], "_type": "ClassLabel"}}
    note = json.dumps({"info": {"features": features}})
    pq.write_table(content.replace_schema_metadata({"huggingface": note}), tmp_path / "a.parquet")
    assert said(only(tmp_path / "a.parquet")) == [("q", "good")]


def test_a_shape_that_is_not_recognised_names_columns_and_the_nearest_shapes(
    tmp_path: Path,
) -> None:
    path = write(tmp_path / "a.jsonl", {"promt": "q", "completon": "a"})
    with pytest.raises(DataError) as caught:
        only(path)
    text = str(caught.value)
    assert "'promt', 'completon'" in text
    assert "Nearest shapes: prompt_completion (prompt and completion" in text
    assert "--column user=NAME" in text


def test_every_guess_can_be_overridden(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"text": "q", "label": "a", "x": "g"})
    assert said(only(path, columns={"user": "label", "assistant": "text"})) == [("a", "q")]
    assert said(only(path, shape="text")) == [("q",)]
    (found,) = [r.found for r in only(path, columns={"group": "x"}).rows()]
    assert isinstance(found, Conversation)
    assert (found.group, len(found.messages)) == ("g", 2)
    with pytest.raises(DataError, match="not of the shape 'chat'"):
        only(path, shape="chat")
    odd = tmp_path / "odd.csv"
    odd.write_bytes("text!label\ncaf\u00e9!x\n".encode("cp850"))
    assert said(only(odd, delimiter="!", encoding="cp850")) == [("café", "x")]
    with pytest.raises(DataError, match="no such encoding"):
        only(odd, encoding="utf-99")


def test_a_western_table_is_read_in_its_encoding_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("text;label\nDas Café schließt – leider;“negativ”\n".encode("cp1252"))
    source = only(path)
    assert said(source) == [("Das Café schließt – leider", "negativ")]
    assert source.notes["encoding"] == "cp1252"
    assert "guessed" in source.notes["encoding_from"]


def test_a_text_becomes_passages_at_their_lines_of_which_every_letter_counts(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.md"
    path.write_text("# One\nFirst words.\n\nMore of it.\n\n# Two\n" + "Long. " * 80, "utf-8")
    source = only(path, passage_characters=200)
    rows = [(r.line, r.found) for r in source.rows()]
    assert [line for line, _ in rows] == [1, 6, 7, 7]
    assert all(isinstance(f, Conversation) and f.is_text for _, f in rows)
    joined = "".join(f.messages[0].content for _, f in rows if isinstance(f, Conversation))
    assert "".join(joined.split()) == "".join(path.read_text("utf-8").split())


def test_a_table_in_a_text_file_is_a_table_and_prose_with_tabs_is_not(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("question\tanswer\nq\ta\n")
    assert only(tmp_path / "a.txt").shape == "question_answer"
    (tmp_path / "b.txt").write_text("[Illustration]\n\nOnce, there, was\na, long, day\n")
    assert only(tmp_path / "b.txt").shape == "text"
