"""Planted defects: in every shape and container, each at its line with its reason, none else."""

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

from timechat.recipe import Clean, Data
from timechat.stages.preparing.prepare import Prepared, prepare

Fields = dict[str, Any]
WORDS = [
    "harbour",
    "lantern",
    "velvet",
    "orchard",
    "thunder",
    "marble",
    "cinnamon",
    "glacier",
    "whistle",
    "tapestry",
    "meadow",
    "copper",
    "saffron",
    "anchor",
    "juniper",
    "pebble",
    "compass",
    "ribbon",
    "falcon",
    "timber",
]
NUM_ROWS = 120


def question(i: int) -> str:
    """Sentences that are nowhere near each other."""
    return " ".join(WORDS[(i * k + i // 20 + k * k) % 20] for k in (1, 3, 7, 9, 11)) + f" {i}?"


def answer(i: int) -> str:
    return " ".join(WORDS[(i * k + 5) % 20] for k in (7, 11, 13)) + f" {i}."


# Where, what becomes of question and answer, and the reason.
DEFECTS: dict[int, tuple[Callable[[int], tuple[str, str]], str]] = {
    7: (lambda i: ("", answer(i)), "empty_question"),
    19: (lambda i: (question(i), "  "), "empty_answer"),
    28: (lambda i: (question(3), answer(3)), "duplicate"),
    41: (lambda i: (question(i), answer(i) + "<|im_end|>"), "template_residue"),
    55: (lambda i: (question(i), "A lost \ufffd letter."), "damaged_text"),
    63: (lambda i: (f"  {question(4)} ", answer(4)), "duplicate"),
    77: (lambda i: (question(i), "[INST] What? [/INST]"), "template_residue"),
}
SHAPES: dict[str, Callable[[str, str], Fields]] = {
    "chat": lambda q, a: {
        "messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]
    },
    "sharegpt": lambda q, a: {
        "conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": a}]
    },
    "alpaca": lambda q, a: {"instruction": q, "input": "", "output": a},
    "prompt_completion": lambda q, a: {"prompt": q, "completion": a},
    "question_answer": lambda q, a: {"question": q, "answer": a},
    "text_label": lambda q, a: {"text": q, "label": a},
    "preference": lambda q, a: {"prompt": q, "chosen": a, "rejected": "No idea."},
    "kto": lambda q, a: {"prompt": q, "completion": a, "label": True},
}
# What a row of nulls, which Parquet may hold, is in shapes that look at something else first.
NULL_ROW = {"chat": "no_messages", "sharegpt": "no_messages", "kto": "bad_label",
            "preference": "content_not_a_string"}  # fmt: skip
Written = tuple[str, bytes, Callable[[int], int], str]


def rows(shape: str) -> list[Fields]:
    return [
        SHAPES[shape](*(DEFECTS[i][0](i) if i in DEFECTS else (question(i), answer(i))))
        for i in range(NUM_ROWS)
    ]


def as_jsonl(found: list[Fields]) -> Written:
    lines = [json.dumps(row) for row in found]
    lines[90] = lines[90][:-2]
    return "a.jsonl", "\n".join(lines).encode(), lambda i: i + 1, "not_json"


def as_array(found: list[Fields]) -> Written:
    lines = [json.dumps(row) for row in found]
    lines[90] = lines[90][:-2]
    return "a.json", ("[\n" + ",\n".join(lines) + "\n]").encode(), lambda i: i + 2, "not_json"


def as_table(found: list[Fields]) -> Written:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(found[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)
    lines = out.getvalue().split("\n")
    lines[91] += ",too,many,fields"
    return "a.csv", "\n".join(lines).encode(), lambda i: i + 2, "ragged_row"


def as_parquet(found: list[Fields]) -> Written:
    found[90] = dict.fromkeys(found[90])
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(found), out, row_group_size=50)
    return "a.parquet", out.getvalue(), lambda i: i + 1, "null"


def as_workbook(found: list[Fields]) -> Written:
    book = openpyxl.Workbook()
    sheet = book.active
    assert sheet is not None
    sheet.append(list(found[0]))
    for row in found:
        sheet.append(list(row.values()))
    sheet.cell(92, 1).value = "=A1&A2"
    out = io.BytesIO()
    book.save(out)
    return "a.xlsx", out.getvalue(), lambda i: i + 2, "formula_without_value"


def as_gzip(found: list[Fields]) -> Written:
    name, content, line, broken = as_jsonl(found)
    return f"{name}.gz", gzip.compress(content), line, broken


def as_zstd(found: list[Fields]) -> Written:
    name, content, line, broken = as_array(found)
    return f"{name}.zst", zstandard.compress(content), line, broken


def zipped(written: Written) -> Written:
    name, content, line, broken = written
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return "a.zip", out.getvalue(), line, broken


def as_zip(found: list[Fields]) -> Written:
    return zipped(as_table(found) if is_flat(found) else as_jsonl(found))


def as_packed_binary(found: list[Fields]) -> Written:
    """What is read back and forth, inside an archive: a workbook or a Parquet file."""
    return zipped(as_workbook(found) if is_flat(found) else as_parquet(found))


def is_flat(found: list[Fields]) -> bool:
    return not any(isinstance(value, list) for value in found[0].values())


WRITERS = {
    "jsonl": as_jsonl,
    "json": as_array,
    "csv": as_table,
    "parquet": as_parquet,
    "xlsx": as_workbook,
    "gz": as_gzip,
    "zst": as_zstd,
    "zip": as_zip,
    "zipped binary": as_packed_binary,
}
FLAT = [shape for shape in SHAPES if shape not in ("chat", "sharegpt")]
CASES = [
    (shape, kind)
    for kind in WRITERS
    for shape in SHAPES
    if shape in FLAT or kind not in ("csv", "xlsx")
]


def ledger(prepared: Prepared) -> dict[int, str]:
    text = (prepared.folder / "dropped.jsonl").read_text(encoding="utf-8")
    touched = [json.loads(line) for line in text.splitlines()]
    return {t["line"]: t["reason"] for t in touched if t["action"] == "dropped"}


@pytest.mark.parametrize(("shape", "container"), CASES)
def test_each_planted_defect_is_dropped_at_its_line_with_its_reason_and_none_else(
    tmp_path: Path, shape: str, container: str
) -> None:
    name, content, line, broken = WRITERS[container](rows(shape))
    (tmp_path / name).write_bytes(content)
    prepared = prepare(Data(train=(str(tmp_path / name),)), tmp_path / "out", lambda _: None)
    expected = {line(i): reason for i, (_, reason) in DEFECTS.items()}
    expected[line(90)] = NULL_ROW.get(shape, "empty_question") if broken == "null" else broken
    assert ledger(prepared) == expected
    card = prepared.card
    assert card.rows_in == NUM_ROWS == card.rows_kept + card.rows_dropped
    assert [notes["shape"] for notes in card.sources.values()] == [shape]
    assert card.overlap == {"validation": 0, "test": 0}


def test_answers_that_are_marked_bad_or_not_marked_are_dropped_at_their_lines(
    tmp_path: Path,
) -> None:
    found = rows("kto")
    found[11]["label"], found[34]["label"] = False, "perhaps"
    name, content, line, broken = as_jsonl(found)
    (tmp_path / name).write_bytes(content)
    prepared = prepare(Data(train=(str(tmp_path / name),)), tmp_path / "out", lambda _: None)
    expected = {line(i): reason for i, (_, reason) in DEFECTS.items()}
    expected |= {line(90): broken, line(11): "marked_bad", line(34): "bad_label"}
    assert ledger(prepared) == expected


def test_defects_in_plain_text_are_dropped_at_the_line_their_passage_begins(
    tmp_path: Path,
) -> None:
    passages = [
        " ".join(f"{WORDS[(i * k + k) % 20]}{i * 31 % 97}" for k in range(1, 40)) + "."
        for i in range(120)
    ]
    passages[33] = passages[30]
    passages[58] += " A lost \ufffd letter."
    passages[71] += " A \0 byte."
    (tmp_path / "a.md").write_text("\n\n".join(passages), encoding="utf-8")
    data = Data(train=(str(tmp_path / "a.md"),), passage_characters=400)
    prepared = prepare(data, tmp_path / "out", lambda _: None)
    assert ledger(prepared) == {67: "duplicate", 117: "damaged_text", 143: "nul_byte"}
    card = prepared.card
    assert card.rows_in == 120 == card.rows_kept + card.rows_dropped


def chats(path: Path, *turns: tuple[str, ...]) -> str:
    roles = ("user", "assistant")
    text = "".join(
        json.dumps({"messages": [{"role": roles[i % 2], "content": t} for i, t in enumerate(row)]})
        + "\n"
        for row in turns
    )
    path.write_text(text, encoding="utf-8")
    return str(path)


def many(count: int = 40) -> list[tuple[str, ...]]:
    return [(question(i), answer(i)) for i in range(count)]


def test_planted_near_duplicates_never_part(tmp_path: Path) -> None:
    base = many(200)
    twins = [(f"Please: {q.replace('?', ' ...')}", f"{a} Indeed.") for q, a in base[:100]]
    path = chats(tmp_path / "a.jsonl", *base, *twins)
    prepared = prepare(Data(train=(path,)), tmp_path / "out", lambda _: None)
    sides = {
        row.line: name
        for name in ("train", "validation", "test")
        for row in getattr(prepared, name)
    }
    assert len(sides) == 300
    assert all(sides[i] == sides[200 + i] for i in range(1, 101))
    assert prepared.card.near["rows"] == 200


def test_near_duplicates_are_dropped_when_asked_and_only_with_a_near_answer(
    tmp_path: Path,
) -> None:
    base = many(60)
    near = (f"Oh, {base[5][0]}", base[5][1])
    other_answer = (f"Oh, {base[6][0]}", "Something else entirely, which was never said before.")
    path = chats(tmp_path / "a.jsonl", *base, near, other_answer)
    data = Data(train=(path,), clean=Clean(near="drop"))
    prepared = prepare(data, tmp_path / "out", lambda _: None)
    assert ledger(prepared) == {61: "near_duplicate"}


def test_a_question_inside_a_conversation_or_a_longer_prompt_is_found(tmp_path: Path) -> None:
    long = " ".join(f"{WORDS[i % 20]} {WORDS[(i * 7 + 3) % 20]}" for i in range(20))
    train = chats(
        tmp_path / "train.jsonl",
        *many(30),
        ("Hello there", "Hi", "What is the colour of the harbour lantern", "Red."),
        (f"Answer the following question as well as you can: {long}", "Yes."),
    )
    for asked in ("What's the colour of the harbour lantern?", long):
        test = chats(tmp_path / "test.jsonl", (asked, "Something."))
        data = Data(train=(train,), test=(test,), overlap="allow")
        prepared = prepare(data, tmp_path / "out", lambda _: None)
        assert prepared.card.overlap["test"] == 1, asked


@pytest.mark.parametrize("place", [0, 20, 200])
def test_a_leak_into_a_test_file_moves_no_row_that_was_split_off_here(
    tmp_path: Path, place: int
) -> None:
    """Wherever in a test file it stands, also where no training row has that number."""
    long = "Which of our two harbour ferries leaves first on a Sunday morning in the winter months"
    train = chats(
        tmp_path / "train.jsonl",
        *many(60),
        (f"Answer the following question as well as you can: {long}", "The blue one."),
    )
    asked = [(f"What is kept in cupboard {i} of {i % 7} rooms?", "Tools.") for i in range(300)]
    asked[place] = (long, "The blue one.")
    test = chats(tmp_path / "test.jsonl", *asked)
    plain = prepare(Data(train=(train,)), tmp_path / "plain", lambda _: None)
    data = Data(train=(train,), test=(test,), overlap="allow")
    prepared = prepare(data, tmp_path / "out", lambda _: None)
    assert prepared.card.overlap == {"validation": 0, "test": 1}
    assert prepared.card.splits["validation"] == plain.card.splits["validation"] > 0


def test_labels_keep_their_shares_and_shared_answers_are_only_reported(tmp_path: Path) -> None:
    labelled = [(question(i), "rare" if i % 10 == 0 else "common") for i in range(400)]
    path = chats(tmp_path / "a.jsonl", *labelled)
    prepared = prepare(Data(train=(path,)), tmp_path / "out", lambda _: None)
    rare = sum(row.reference == "rare" for row in prepared.test)
    assert (len(prepared.test), rare) == (40, 4)
    assert [line["label"] for line in prepared.card.bias] == ["common", "rare"]
    test = chats(tmp_path / "t.jsonl", ("Something nobody asked before, is it?", "rare"))
    own = prepare(Data(train=(path,), test=(test,)), tmp_path / "own", lambda _: None)
    assert own.card.shared_answers["test"] == 1


def test_balance_evens_labels_out_by_sampling_or_by_weights(tmp_path: Path) -> None:
    labelled = [(question(i), "rare" if i % 5 == 0 else "common") for i in range(300)]
    path = chats(tmp_path / "a.jsonl", *labelled)
    sampled = prepare(
        Data(train=(path,), clean=Clean(balance="sample")), tmp_path / "s", lambda _: None
    )
    counts = [sum(r.reference == x for r in sampled.train) for x in ("rare", "common")]
    assert counts[0] == counts[1] > 20
    assert sampled.card.closes
    assert sampled.card.reasons["balanced"] > 50
    weighted = prepare(
        Data(train=(path,), clean=Clean(balance="weight")), tmp_path / "w", lambda _: None
    )
    weights = {row.reference: row.messages[-1].weight for row in weighted.train}
    assert weights["rare"] == 1.0
    assert weights["common"] == pytest.approx(0.25, abs=0.02)


def test_personal_data_is_reported_and_replaced_consistently_only_when_asked(
    tmp_path: Path,
) -> None:
    row = ("Write to ann@corp.com or bob@corp.com", "ANN@corp.com it is.")
    path = chats(tmp_path / "a.jsonl", *many(), row)
    kept = prepare(Data(train=(path,)), tmp_path / "k", lambda _: None)
    assert kept.card.found["personal_data"]["e-mail"] == 3
    assert kept.card.edited == {}
    data = Data(train=(path,), clean=Clean(personal="replace"))
    replaced = prepare(data, tmp_path / "r", lambda _: None)
    every = (*replaced.train, *replaced.validation, *replaced.test)
    (mended,) = [r for r in every if r.line == 41]
    assert [m.content for m in mended.messages] == [
        "Write to [e-mail 1] or [e-mail 2]",
        "[e-mail 1] it is.",
    ]
    data = Data(train=(path,), clean=Clean(personal="drop"))
    assert ledger(prepare(data, tmp_path / "d", lambda _: None)) == {41: "personal_data"}


def test_rows_in_other_languages_are_dropped_when_languages_are_named(tmp_path: Path) -> None:
    english = [
        (f"When does the shop on street number {i} open today?", f"{i} Yes, it does.")
        for i in range(40)
    ]
    german = ("Wann öffnet das Geschäft am frühen Morgen seine Türen?", "Um acht Uhr morgens.")
    path = chats(tmp_path / "a.jsonl", *english, german)
    data = Data(train=(path,), clean=Clean(languages=("en",)))
    assert ledger(prepare(data, tmp_path / "out", lambda _: None)) == {41: "language"}


def test_long_rows_are_dropped_shortened_by_whole_turns_or_refused(tmp_path: Path) -> None:
    long = ("one two", "three", "four five", "six " * 30)
    path = chats(tmp_path / "a.jsonl", *many(), long, ("word " * 40, "x"))

    def count(messages: Any) -> int:
        return sum(len(m.content.split()) for m in messages)

    def run(action: str, name: str) -> Prepared:
        rules = Clean.model_validate({"max_tokens": 20, "too_long": action})
        return prepare(Data(train=(path,), clean=rules), tmp_path / name, lambda _: None, count)

    assert ledger(run("drop", "d")) == {41: "too_long", 42: "too_long"}
    shortened = run("shorten", "s")
    assert ledger(shortened) == {42: "too_long"}
    every = (*shortened.train, *shortened.validation, *shortened.test)
    assert [m.content for r in every if r.line == 41 for m in r.messages] == ["one two", "three"]
    lines = (tmp_path / "s" / "dropped.jsonl").read_text().splitlines()
    assert {json.loads(line)["action"] for line in lines} == {"dropped", "shortened"}
    from timechat.errors import DataError

    with pytest.raises(DataError, match=r"line 41 has 35 tokens"):
        run("refuse", "r")


def test_a_folder_that_comes_split_stays_split(tmp_path: Path) -> None:
    folder = tmp_path / "set" / "data"
    folder.mkdir(parents=True)
    chats(folder / "train-00000-of-00001.jsonl", *many(30))
    chats(folder / "test-00000-of-00001.jsonl", *many(60)[40:])
    data = Data(train=(str(tmp_path / "set"),))
    card = prepare(data, tmp_path / "out", lambda _: None).card
    assert card.splits["test"] == 20
    assert card.splits["train"] + card.splits["validation"] == 30
