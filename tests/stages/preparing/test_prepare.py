"""Prepare: the books close, nothing leaks, and nothing half-done is left."""

import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from timechat.errors import DataError
from timechat.recipe import Data
from timechat.stages.preparing.prepare import Prepared, load_prepared, prepare

SHARED = Path(__file__).parents[4] / "shared" / "data"


def quiet(text: str) -> None:
    del text


def row(question: str, answer: str = "yes", **more: Any) -> str:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return json.dumps({"messages": messages} | more)


def write(path: Path, lines: Iterable[str]) -> str:
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return str(path)


def touched(prepared: Prepared) -> list[dict[str, Any]]:
    text = (prepared.folder / "dropped.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_every_line_is_kept_or_dropped_and_the_ledger_says_where(tmp_path: Path) -> None:
    lines = [row(f"question {i}") for i in range(60)]
    lines[4], lines[9], lines[19], lines[29] = "", "{", row("question 1"), row(" padded ")
    name = write(tmp_path / "a.jsonl", lines)
    prepared = prepare(Data(train=(name,)), tmp_path / "out", quiet)
    card = prepared.card
    assert (card.rows_in, card.rows_kept, card.rows_dropped) == (60, 57, 3)
    assert card.closes
    assert card.reasons == {"blank_line": 1, "not_json": 1, "duplicate": 1}
    assert card.edited == {"outer_whitespace": 1}
    assert card.overlap == {"validation": 0, "test": 0}
    assert [(t["line"], t["action"], t["reason"]) for t in touched(prepared)] == [
        (5, "dropped", "blank_line"),
        (10, "dropped", "not_json"),
        (20, "dropped", "duplicate"),
        (30, "edited", "outer_whitespace"),
    ]
    assert {t["source"] for t in touched(prepared)} == {name}
    sides = (prepared.train, prepared.validation, prepared.test)
    dropped = {t["line"] for t in touched(prepared) if t["action"] == "dropped"}
    assert sorted(r.line for side in sides for r in side) == sorted(set(range(1, 61)) - dropped)


def test_what_was_prepared_is_loaded_back_equal(tmp_path: Path) -> None:
    lines = [row(f"q{i} “é” 👍", group=f"g{i}", answers=["yes"], tags=["t"]) for i in range(40)]
    data = Data(train=(write(tmp_path / "a.jsonl", lines),), system="Be kind.")
    prepared = prepare(data, tmp_path / "out", quiet)
    assert load_prepared(tmp_path / "out") == prepared
    assert prepare(Data(prepared=str(tmp_path / "out")), tmp_path / "x", quiet) == prepared
    assert all(r.messages[0].content == "Be kind." for r in prepared.test)


def test_the_same_rows_in_another_order_fall_on_the_same_sides(tmp_path: Path) -> None:
    lines = [row(f"q{i}") for i in range(80)]
    one = prepare(Data(train=(write(tmp_path / "a.jsonl", lines),)), tmp_path / "1", quiet)
    random.Random(0).shuffle(lines)
    other = prepare(Data(train=(write(tmp_path / "b.jsonl", lines),)), tmp_path / "2", quiet)
    assert {r.id for r in one.test} == {r.id for r in other.test}
    again = prepare(Data(train=(str(tmp_path / "a.jsonl"),)), tmp_path / "3", quiet)
    assert again.card.digest == one.card.digest


def test_overlap_with_the_users_own_test_file_is_refused_unless_it_is_allowed_by_name(
    tmp_path: Path,
) -> None:
    train = write(tmp_path / "train.jsonl", [row(f"Question {i}?") for i in range(30)])
    test = write(tmp_path / "test.jsonl", [row("question 3"), row("new"), row("QUESTION 4!")])
    validation = write(tmp_path / "validation.jsonl", [row("Question 5?")])
    data = Data(train=(train,), validation=(validation,), test=(test,))
    with pytest.raises(DataError) as caught:
        prepare(data, tmp_path / "out", quiet)
    text = str(caught.value)
    assert "1 of 1 validation rows and 2 of 3 test rows ask what training rows ask" in text
    assert f"{test}:1 and {train}:4 (word for word)" in text
    assert "data.overlap" in text
    assert not (tmp_path / "out").exists()
    said: list[str] = []
    allowed = data.model_copy(update={"overlap": "allow"})
    prepared = prepare(allowed, tmp_path / "out", said.append)
    assert prepared.card.overlap == {"validation": 1, "test": 2}
    assert prepared.card.splits == {"train": 30, "validation": 1, "test": 3}
    assert any("stand in the training rows" in text for text in said)
    dropping = data.model_copy(update={"overlap": "drop"})
    dropped = prepare(dropping, tmp_path / "dropped", quiet)
    assert dropped.card.overlap == {"validation": 0, "test": 0}
    assert dropped.card.splits == {"train": 27, "validation": 1, "test": 3}
    assert {t["line"] for t in touched(dropped) if t["reason"] == "overlap"} == {4, 5, 6}
    assert dropped.card.closes


def test_too_many_bad_rows_stop_it_with_reasons_and_leave_nothing(tmp_path: Path) -> None:
    lines = [row(f"q{i}") for i in range(20)] + ["{"] * 3 + ["[]"] * 2 + [row("x", "")] + ["1", "2"]
    name = write(tmp_path / "a.jsonl", lines)
    with pytest.raises(DataError) as caught:
        prepare(Data(train=(name,)), tmp_path / "out", quiet)
    text = str(caught.value)
    assert "8 of 28 rows" in text
    assert f"not_an_object × 4 (first at {name} line 24" in text
    assert "not_json × 3" in text
    assert "empty_answer × 1" in text
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]


def test_duplicates_and_blank_lines_do_not_count_as_bad(tmp_path: Path) -> None:
    lines = [row(f"q{i}") for i in range(20)] + [row("q1")] * 30 + [""] * 30
    data = Data(train=(write(tmp_path / "a.jsonl", lines),), max_dropped=0.0)
    assert prepare(data, tmp_path / "out", quiet).card.rows_dropped == 60


def test_a_folder_that_is_not_ours_is_refused_and_left_alone(tmp_path: Path) -> None:
    data = Data(train=(write(tmp_path / "a.jsonl", [row(f"q{i}") for i in range(20)]),))
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match="not a prepared folder"):
        prepare(data, out, quiet)
    (out / "card.json").write_text("{}")
    with pytest.raises(DataError, match=r"also holds thesis\.txt"):
        prepare(data, out, quiet)
    assert (out / "thesis.txt").read_text() == "mine"
    with pytest.raises(DataError, match="not a prepared folder"):
        prepare(data, tmp_path / "a.jsonl", quiet)


def test_a_prepared_folder_is_replaced(tmp_path: Path) -> None:
    name = write(tmp_path / "a.jsonl", [row(f"q{i}") for i in range(20)])
    prepare(Data(train=(name,)), tmp_path / "out", quiet)
    again = prepare(Data(train=(name,), system="New."), tmp_path / "out", quiet)
    assert load_prepared(tmp_path / "out") == again


def test_rows_that_were_edited_after_preparing_are_refused(tmp_path: Path) -> None:
    name = write(tmp_path / "a.jsonl", [row(f"q{i}") for i in range(20)])
    prepare(Data(train=(name,)), tmp_path / "out", quiet)
    with (tmp_path / "out" / "train.jsonl").open("a") as file:
        file.write(row("new") + "\n")
    with pytest.raises(DataError, match="digest differs"):
        load_prepared(tmp_path / "out")
    (tmp_path / "out" / "test.jsonl").unlink()
    with pytest.raises(DataError, match="damaged"):
        load_prepared(tmp_path / "out")
    with pytest.raises(DataError, match="no prepared folder"):
        load_prepared(tmp_path)


def test_two_files_of_one_name_are_told_apart(tmp_path: Path) -> None:
    names: list[str] = []
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        lines = [row(f"{folder} {i}") for i in range(20)]
        names.append(write(tmp_path / folder / "a.jsonl", lines))
    prepared = prepare(Data(train=tuple(names)), tmp_path / "out", quiet)
    assert set(prepared.card.sources) == set(names)
    assert {r.source for r in prepared.train} == set(names)


def test_no_rows_and_both_ways_at_once_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no training rows"):
        prepare(Data(), tmp_path / "out", quiet)
    with pytest.raises(DataError, match="one or the other"):
        prepare(Data(prepared="x", train=("y",)), tmp_path / "out", quiet)
    blank = write(tmp_path / "blank.jsonl", ["", ""])
    with pytest.raises(DataError, match="no usable train row"):
        prepare(Data(train=(blank,)), tmp_path / "out", quiet)


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data")
def test_banking77_is_read_whole(tmp_path: Path) -> None:
    folder = SHARED / "banking77"
    data = Data(train=(str(folder / "train.csv"),), test=(str(folder / "test.csv"),))
    with pytest.raises(DataError, match="test rows ask what training rows ask"):
        prepare(data, tmp_path / "out", quiet)
    card = prepare(data.model_copy(update={"overlap": "allow"}), tmp_path / "out", quiet).card
    assert card.rows_in == 10_003 + 3_080
    assert set(card.reasons) == {"duplicate"}
    assert card.sources[str(folder / "train.csv")]["columns"] == {
        "user": "text",
        "assistant": "category",
    }


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data")
def test_coffee_is_read_and_its_unknown_key_named(tmp_path: Path) -> None:
    name = str(SHARED / "coffee" / "dialogues.jsonl")
    card = prepare(Data(train=(name,)), tmp_path / "out", quiet).card
    assert card.rows_in == 3_710
    assert set(card.reasons) <= {"no_answer", "duplicate"}
    assert card.sources[name]["ignored_keys"] == ["scenario"]
