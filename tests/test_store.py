"""The store: nothing half-written looks finished."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from timechat.errors import RunError
from timechat.store.claims import is_owned, owned
from timechat.store.files import (
    append_line,
    read_json,
    read_lines,
    sha256,
    to_json,
    write_json,
    write_lines,
    write_text,
)
from timechat.store.folders import Draft, build_folder, remove_folder, sweep, system_errors


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


def test_a_torn_line_is_replaced_by_the_next_one(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    for torn in ('{"a": 1}\n{"b": 2', '{"b'):
        path.write_text(torn)
        append_line(path, {"a": 3})
        assert list(read_lines(path))[-1] == {"a": 3}
        assert torn.rpartition("\n")[2] not in path.read_text()


def test_what_a_killed_writer_left_is_swept_and_what_is_under_way_is_not(tmp_path: Path) -> None:
    at_work = Draft(tmp_path / "slow")
    (at_work.folder / "a").write_text("half")
    for name in (".out.timechat-dead", ".a.json.timechat-dead"):
        (tmp_path / name).mkdir()
    (tmp_path / ".b.json.timechat-dead").write_text("{")
    (tmp_path / ".profile").write_text("not ours")
    sweep(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {at_work.folder.name, ".profile"}
    at_work.commit()
    assert (tmp_path / "slow" / "a").read_text() == "half"


def test_a_folder_about_to_be_replaced_gets_its_name_back(tmp_path: Path) -> None:
    """As after a kill between the two renames of a replacement."""
    old = tmp_path / ".out.timechat-old-dead"
    old.mkdir()
    (old / "a").write_text("old")
    (tmp_path / ".out.timechat-beef").mkdir()
    sweep(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "a").read_text() == "old"


def test_a_replacement_that_fails_leaves_the_old_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with build_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("old")
    rename = os.rename
    calls = iter([rename, fail, rename])
    draft = Draft(tmp_path / "out")
    monkeypatch.setattr(os, "rename", lambda *names: next(calls)(*names))
    with pytest.raises(OSError, match="No space"):
        draft.commit()
    draft.drop()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "a").read_text() == "old"


def test_a_failed_call_inside_a_rust_library_is_a_system_error_again(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="Input/output error") as caught, system_errors(tmp_path):
        raise Exception("Error while serializing: I/O error: whatever (os error 5)")
    assert caught.value.errno == 5
    with pytest.raises(ValueError, match="another"), system_errors(tmp_path):
        raise ValueError("another")


def fail(*_: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_removed_folder_is_gone_under_its_name_at_once(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "a").write_text("x")
    remove_folder(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_has_one_owner_and_a_dead_one_holds_nothing(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from timechat.store.claims import owned\n"
        "with owned(Path(sys.argv[1])): print('mine', flush=True); time.sleep(60)"
    )
    ask = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(ask, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "mine\n"
        assert is_owned(tmp_path)
        with pytest.raises(RunError, match=f"process {child.pid}"), owned(tmp_path):
            pass
        child.kill()
    assert not is_owned(tmp_path)
    with owned(tmp_path):
        pass


def test_what_safetensors_writes_for_one_user_is_shared_as_he_shares(tmp_path: Path) -> None:
    with build_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("x")
        (folder / "a").chmod(0o600)
    mode = (tmp_path / "out").stat().st_mode & 0o666
    assert (tmp_path / "out" / "a").stat().st_mode & 0o777 == mode


def test_sha256_is_the_known_one(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256(tmp_path / "a").startswith("ba7816bf8f01cfea")
    assert json.dumps(sha256(tmp_path / "a"))
