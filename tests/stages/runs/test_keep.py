"""Which checkpoints stay, and what may be taken away: on folders without a model in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from timechat.errors import RunError
from timechat.manifest import checkpoints, step_of, write_manifest
from timechat.stages.runs.keep import newest_planned, pinned, point, retain
from timechat.stages.runs.listing import describe, list_runs, pin, remove
from timechat.stages.runs.record import note
from timechat.store.claims import owned
from timechat.store.files import append_line, write_json
from timechat.training.checkpoint import step_folder


def add(run: Path, step: int, planned: bool = True) -> Path:
    folder = step_folder(run, step)
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(bytes(1000))
    write_manifest(folder, {"step": step, "planned": planned})
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    run = tmp_path / "runs" / "one"
    for step in range(2, 12, 2):
        add(run, step)
    (run / "recipe.yaml").write_text("base: starter\n")
    point(run, "best", step_folder(run, 4))
    note(run, "started")
    return run


def steps(run: Path) -> list[int]:
    return sorted(map(step_of, checkpoints(run)))


def test_the_newest_two_the_best_and_the_pinned_stay(run: Path) -> None:
    pin(f"{run}@step-2", keep=True)
    gone = retain(run, also=[4])
    assert sorted(map(step_of, gone)) == [6]
    assert steps(run) == [2, 4, 8, 10]
    pin(f"{run}@step-2", keep=False)
    assert pinned(run) == []
    retain(run, also=[4])
    assert steps(run) == [4, 8, 10]


def test_a_checkpoint_that_a_signal_caused_displaces_no_planned_one(run: Path) -> None:
    add(run, 11, planned=False)
    retain(run, also=[])
    assert steps(run) == [8, 10, 11]
    found = newest_planned(run, before=12)
    assert found is not None
    assert step_of(found) == 10


def test_a_damaged_manifest_counts_for_nothing(run: Path) -> None:
    path = step_folder(run, 8) / "manifest.json"
    path.write_text(path.read_text().replace('"step": 8', '"step": 9'))
    retain(run, also=[])
    assert {6, 10} <= set(steps(run))


def test_runs_are_listed_with_state_step_and_size(run: Path) -> None:
    append_line(run / "metrics.jsonl", {"step": 7, "loss": 1.0})
    found = describe(run)
    assert (found.state, found.step, found.checkpoints) == ("interrupted", 7, (2, 4, 6, 8, 10))
    assert found.bytes > 5000
    with owned(run):
        assert describe(run).state == "running"
    note(run, "finished")
    write_json(run / "report.json", {"verdict": "improved"})
    assert [(r.state, r.verdict) for r in list_runs(run.parent)] == [("finished", "improved")]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("@step-4", "is the best checkpoint"),
        ("@step-10", "would go on from"),
        ("@step-6", "is pinned"),
        ("@step-5", "no checkpoint at step 5; kept: step-000010"),
        ("@last", "is no checkpoint"),
    ],
)
def test_what_is_needed_is_not_removed(run: Path, name: str, why: str) -> None:
    pin(f"{run}@step-6", keep=True)
    with pytest.raises(RunError, match=why):
        remove(f"{run}{name}")
    assert steps(run) == [2, 4, 6, 8, 10]


def test_a_checkpoint_or_a_run_is_removed_and_its_bytes_are_told(run: Path) -> None:
    assert remove(f"{run}@step-8") > 1000
    assert steps(run) == [2, 4, 6, 10]
    (run / "thesis.txt").write_text("years of work")
    with pytest.raises(RunError, match=r"thesis\.txt"):
        remove(str(run))
    (run / "thesis.txt").unlink()
    assert remove(str(run)) > 4000
    assert list(run.parent.iterdir()) == []


def test_only_a_run_is_removed(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no run at"):
        remove(str(tmp_path))
    assert tmp_path.is_dir()
