"""A run that moves, changes, meets bad numbers or a disk it may not write to: said, or gone on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import KILL_BEFORE, Zygote, proof, write_recipe
from test_disk import errors_of

from timechat.manifest import checkpoints, read_manifest
from timechat.stages.runs.record import ENVIRONMENT
from timechat.store.files import read_json, read_lines, write_json
from timechat.training.saver import Saver

Finish = Callable[[Path], dict[str, Any]]


@pytest.fixture
def place(zygote: Zygote, tmp_path: Path) -> Path:
    """A folder with base, rows, recipe and a run of it that was killed on the way."""
    place = tmp_path / "here"
    recipe = write_recipe(place)
    out = place / "run"
    arm = (str(out / "checkpoints"), KILL_BEFORE, 150, 0)
    status = (
        zygote.run(out, recipe, arm)
        if zygote.has_shim
        else zygote.kill_after(1.0, out, recipe, signal.SIGKILL)
    )
    assert status == -9
    assert next(checkpoints(out), None) is not None
    return place


def test_a_run_moved_with_its_base_ends_in_the_same_bytes(
    zygote: Zygote, place: Path, uninterrupted: Any
) -> None:
    moved = place.rename(place.with_name("there"))
    out = moved / "run"
    assert zygote.run(out, out / "recipe.yaml") == 0, errors_of(out)
    assert proof(out) == uninterrupted


@pytest.mark.slow
@pytest.mark.faults
def test_a_moved_run_without_its_base_says_what_is_missing(zygote: Zygote, place: Path) -> None:
    moved = place.rename(place.with_name("there"))
    out = moved / "run"
    shutil.rmtree(moved / "base")
    assert zygote.run(out, out / "recipe.yaml") == 2
    said = errors_of(out)[-1]
    assert str(place / "base") in said
    assert read_json(out / ENVIRONMENT)["base"]["digest"][:12] in said
    assert "beside the run" in said


@pytest.mark.slow
@pytest.mark.faults
def test_files_from_the_future_change_nothing(
    zygote: Zygote, place: Path, uninterrupted: Any
) -> None:
    """As after the clock was set back: all that is there is newer than now, and out of order."""
    out = place / "run"
    for days, path in enumerate(sorted(out.rglob("*"), reverse=True)):
        later = path.lstat().st_mtime + 86_400 * (400 + days)
        os.utime(path, (later, later), follow_symlinks=False)
    assert zygote.run(out, place / "tiny.yaml") == 0
    assert proof(out) == uninterrupted


@pytest.mark.slow
@pytest.mark.faults
def test_a_read_only_folder_is_one_error_and_loses_nothing(
    zygote: Zygote, place: Path, uninterrupted: Any
) -> None:
    out = place / "run"
    ask = ["mount", "--bind", str(out), str(out)]
    if os.geteuid() != 0 or subprocess.run(ask, check=False, capture_output=True).returncode:
        pytest.skip("needs the right to mount a folder read-only")
    try:
        again = ["mount", "-o", "remount,bind,ro", str(out)]
        subprocess.run(again, check=True)
        assert zygote.run(out, place / "tiny.yaml") == 2
    finally:
        subprocess.run(["umount", str(out)], check=True)
    said = errors_of(out)
    assert "Read-only file system" in said[-1]
    assert "Traceback" not in "\n".join(said)
    assert zygote.run(out, place / "tiny.yaml") == 0
    assert proof(out) == uninterrupted


def test_changed_rows_are_refused_by_name_unless_allowed(zygote: Zygote, place: Path) -> None:
    out, rows = place / "run", place / "rows.jsonl"
    rows.write_text(rows.read_text().replace("red", "mauve"))
    assert zygote.run(out, place / "tiny.yaml") == 2
    assert f"the data changed: {rows}" in errors_of(out)[-1]
    assert "--allow data" in errors_of(out)[-1]
    assert zygote.run(out, place / "tiny.yaml", allow=("data",)) == 0, errors_of(out)
    assert any(e.get("what") == "data" for e in read_lines(out / "history.jsonl"))


@pytest.mark.slow
@pytest.mark.faults
def test_a_changed_recipe_is_refused_by_name_unless_allowed(zygote: Zygote, place: Path) -> None:
    out, path = place / "run", place / "tiny.yaml"
    recipe = json.loads(path.read_text())
    recipe["train"]["learning_rate"] = 1e-3
    path.write_text(json.dumps(recipe))
    assert zygote.run(out, path) == 2
    assert "train.learning_rate: 0.005 is now 0.001" in errors_of(out)[-1]
    assert zygote.run(out, path, allow=("recipe",)) == 0, errors_of(out)
    last = next(checkpoints(out))
    assert "recipe" in read_json(out / ENVIRONMENT)["former"]
    assert read_manifest(last)["fingerprints"] == read_json(out / ENVIRONMENT)["fingerprints"]


@pytest.mark.slow
@pytest.mark.faults
def test_another_base_is_refused_by_name_unless_allowed(zygote: Zygote, place: Path) -> None:
    from conftest import build_model

    out = place / "run"
    other = build_model(seed=1, hidden_size=16, intermediate_size=16, num_hidden_layers=1)
    other.save_pretrained(place / "base")
    assert zygote.run(out, place / "tiny.yaml") == 2
    assert f"the base of {out} changed" in errors_of(out)[-1]
    assert "--allow base" in errors_of(out)[-1]
    assert zygote.run(out, place / "tiny.yaml", allow=("base",)) == 0, errors_of(out)


@pytest.mark.slow
@pytest.mark.faults
def test_other_libraries_are_said_noted_and_written_into_what_follows(
    zygote: Zygote, place: Path
) -> None:
    out = place / "run"
    then = read_json(out / ENVIRONMENT)
    first = {**then["made_by"], "torch": "1.0"}
    write_json(out / ENVIRONMENT, {**then, "made_by": first})
    assert zygote.run(out, place / "tiny.yaml") == 0
    assert "torch 1.0 is now" in Path(f"{out}.log").read_text()
    now = read_json(out / ENVIRONMENT)
    assert now["made_by"] == then["made_by"]
    assert now["made_before"] == [first]
    assert read_manifest(next(checkpoints(out)))["made_by"] == now["made_by"]
    assert [e["what"] for e in read_lines(out / "history.jsonl") if e["event"] == "changed"] == [
        "libraries"
    ]


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.parametrize("call", [2, 9])
def test_a_kill_while_rows_are_prepared_leaves_nothing_for_ever(
    breaking: Zygote,
    recipe: Path,
    uninterrupted: Any,
    finish: Finish,
    tmp_path: Path,
    call: int,
) -> None:
    out = tmp_path / "run"
    assert breaking.run(out, recipe, (str(out / ".data"), KILL_BEFORE, call, 0)) == -9
    assert not (out / "data").exists()
    assert list(out.glob(".data*"))
    assert finish(out) == uninterrupted


@pytest.mark.slow
@pytest.mark.faults
def test_one_step_that_is_not_finite_is_left_out(
    zygote: Zygote, recipe: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    assert zygote.run(out, recipe, poison=(5, 1)) == 0, errors_of(out)
    rows = list(read_lines(out / "metrics.jsonl"))
    assert [row["step"] for row in rows if "skipped" in row] == [5]
    assert 5 not in [row["step"] for row in rows if "loss" in row]
    assert "step 5 is left out: loss nan" in Path(f"{out}.log").read_text()


@pytest.mark.slow
@pytest.mark.faults
def test_steps_that_are_not_finite_roll_the_run_back_to_a_lower_rate(
    zygote: Zygote, recipe: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    assert zygote.run(out, recipe, poison=(3, 4)) == 0, errors_of(out)
    back = [e for e in read_lines(out / "history.jsonl") if e["event"] == "rolled_back"]
    assert [(e["step"], e["rate_scale"]) for e in back] == [(2, 0.5)]
    rows = [row for row in read_lines(out / "metrics.jsonl") if "loss" in row]
    assert [row["step"] for row in rows] == list(range(1, rows[-1]["step"] + 1))


@pytest.mark.slow
@pytest.mark.faults
def test_a_run_that_stays_not_finite_stops_and_writes_its_rows_out(
    zygote: Zygote, recipe: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    assert zygote.run(out, recipe, poison=(3, 10_000)) == 2
    assert "training cannot go on: steps 3, 4, 5, 6 had no finite loss" in errors_of(out)[-1]
    offending = list(read_lines(out / "offending.jsonl"))
    assert offending
    assert all(row["messages"] and row["step"] >= 3 for row in offending)
    assert list(read_lines(out / "history.jsonl"))[-1]["event"] == "failed"
    assert next(checkpoints(out), None) is not None


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.parametrize(("first", "times", "which"), [(6, 1, "step 6"), (4, 3, "steps 4, 5, 6")])
def test_steps_left_out_at_the_very_end_are_told_in_the_report(
    zygote: Zygote, recipe: Path, tmp_path: Path, first: int, times: int, which: str
) -> None:
    out = tmp_path / "run"
    assert zygote.run(out, recipe, learn=False, poison=(first, times)) == 0, errors_of(out)
    told = f"{times} of 6 steps taught nothing: {which} had no finite loss"
    assert any(told in finding for finding in read_json(out / "report.json")["findings"])
    assert told in (out / "report.md").read_text()
    assert told in Path(f"{out}.log").read_text()


@pytest.mark.slow
@pytest.mark.faults
def test_a_run_that_learnt_nothing_does_not_finish(zygote: Zygote, tmp_path: Path) -> None:
    """Three steps, as many as may be left out."""
    recipe, out = write_recipe(tmp_path, epochs=1), tmp_path / "run"
    assert zygote.run(out, recipe, learn=False, poison=(1, 10_000)) == 2
    assert "training cannot go on: steps 1, 2, 3 had no finite loss" in errors_of(out)[-1]
    assert not (out / "report.json").exists()


def test_a_save_that_failed_in_the_background_fails_the_next_step_once() -> None:
    def fail() -> None:
        raise OSError(28, "No space left on device")

    saver = Saver()
    saver.finish_later(fail)
    with pytest.raises(OSError, match="No space"):
        saver.wait()
    saver.check()
    done: list[int] = []
    saver.finish_later(lambda: done.append(1))
    saver.wait()
    assert done == [1]
