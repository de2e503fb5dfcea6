"""The store: nothing half-written looks finished."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from timechat.errors import RunError
from timechat.store import (
    append_line,
    build_folder,
    read_json,
    read_lines,
    sha256,
    to_json,
    write_json,
    write_lines,
    write_text,
)


@dataclass
class Point:
    x: int
    where: Path


def test_dataclasses_and_paths_become_plain_json() -> None:
    assert to_json({1: (Point(2, Path("a/b")),)}) == {"1": [{"x": 2, "where": "a/b"}]}


def test_json_is_read_back(tmp_path: Path) -> None:
    write_json(tmp_path / "deep" / "a.json", {"é": [1, None]})
    assert read_json(tmp_path / "deep" / "a.json") == {"é": [1, None]}


def test_missing_and_broken_json_are_run_errors(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="missing"):
        read_json(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(RunError, match="not readable"):
        read_json(tmp_path / "bad.json")


def test_a_failed_write_leaves_the_old_content_and_no_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def refuse(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", refuse)
    with pytest.raises(OSError, match="disk full"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write_lines(path, [{"a": 1}])
    append_line(path, {"a": 2})
    with path.open("a") as file:
        file.write('{"a": 3')
    assert list(read_lines(path)) == [{"a": 1}, {"a": 2}]


def test_a_line_separator_inside_a_string_does_not_tear_a_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write_lines(path, [{"a": "x\u2028y\r\nz"}])
    assert list(read_lines(path)) == [{"a": "x\u2028y\r\nz"}]


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "out"

    def fail() -> None:
        with build_folder(target) as folder:
            (folder / "a").write_text("half")
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        fail()
    assert list(tmp_path.iterdir()) == []
    with build_folder(target) as folder:
        (folder / "a").write_text("one")
        assert not target.exists()
    with build_folder(target) as folder:
        (folder / "b").write_text("two")
    assert [p.name for p in target.iterdir()] == ["b"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_sha256_is_the_known_one(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256(tmp_path / "a").startswith("ba7816bf8f01cfea")
    assert json.dumps(sha256(tmp_path / "a"))
