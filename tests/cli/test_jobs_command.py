"""`timechat jobs` and `timechat keys`: by hand, on a server's folder, whether it runs or not."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from timechat.cli import jobs as room
from timechat.cli.main import main
from timechat.ledger.database import LEDGER_FILE, Ledger, open_ledger
from timechat.ledger.jobs import Event, Job, Jobs
from timechat.ledger.leases import Leases


def run(*words: str | Path) -> int:
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    return int(end.value.code or 0)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    open_ledger(tmp_path / LEDGER_FILE).close()
    return tmp_path


@pytest.fixture
def opened(state: Path) -> Ledger:
    return open_ledger(state / LEDGER_FILE)


def create(ledger: Ledger, **more: Any) -> Job:
    given: dict[str, Any] = {
        "project": "lab", "model": "base", "base": "/base", "training_file": "file-1",
        "validation_file": None, "suffix": "", "seed": 1, "hyperparameters": {}, "metadata": None,
    }  # fmt: skip
    return Jobs(ledger).create(**{**given, **more})


def tell_steps(ledger: Ledger, job: Job, *losses: float) -> None:
    with Leases(ledger).held(job.id, "w") as held:
        for step, loss in enumerate(losses, 1):
            data = {"step": step, "train_loss": loss}
            held.tell(Event(f"step-{step}", f"Step {step}", data, type="metrics"))


def test_jobs_are_listed_newest_first(
    state: Path, opened: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = create(opened), create(opened, project="other")
    assert run("jobs", state, "--json") == 0
    out, told = capsys.readouterr()
    assert [row["id"] for row in json.loads(out)] == [second.id, first.id]
    assert "validating_files" in told
    assert "other" in told


def test_a_job_is_steered_by_the_beginning_of_its_id(
    state: Path, opened: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    job = create(opened)
    short = job.id.removeprefix("ftjob-")[:8]
    for name, verb, expected in (
        (job.id, "--pause", "paused"),
        (short, "--resume", "validating_files"),
        (job.id[:14], "--cancel", "cancelled"),
    ):
        assert run("jobs", state, name, verb) == 0
        assert expected in capsys.readouterr().err
    assert run("jobs", state, job.id, "--cancel") == 2
    assert "is over (cancelled)" in capsys.readouterr().err


def test_a_job_is_followed_to_its_end_with_its_curve(
    state: Path,
    opened: Ledger,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(room, "LOOK_S", 0.02)
    drawn: list[str] = []
    draw = room.draw_curve
    monkeypatch.setattr(room, "draw_curve", lambda losses: drawn.append(draw(losses)) or drawn[-1])
    job = create(opened)
    Leases(opened).claim("w", is_planned=False)

    def train() -> None:
        tell_steps(opened, job, 4.0, 2.0, 1.0)
        time.sleep(0.2)
        with Leases(opened).held(job.id, "w") as held:
            held.tell(Event("done", "The job has successfully completed"))
            held.let_go(status="succeeded", fine_tuned_model="ft:base:lab::1")

    thread = threading.Thread(target=train)
    thread.start()
    assert run("jobs", state, job.id, "--json") == 0
    thread.join()
    out, told = capsys.readouterr()
    assert json.loads(out)["fine_tuned_model"] == "ft:base:lab::1"
    said = [line.split(" ", 1)[1] for line in told.splitlines() if ":" in line[:3]]
    assert said[-1] == "The job has successfully completed"
    assert "loss 4.000 █▃▁ 1.000" in drawn


def test_a_curve_has_its_highest_and_lowest_places() -> None:
    assert room.draw_curve([]) == room.draw_curve([1.0]) == ""
    assert room.draw_curve([3.0, 3.0]) == "loss 3.000 ▁▁ 3.000"
    long = room.draw_curve([float(200 - n) for n in range(200)])
    blocks = long.split()[2]
    assert len(blocks) == room.CURVE_WIDTH
    assert (blocks[0], blocks[-1]) == ("█", "▁")
    assert list(blocks) == sorted(blocks, reverse=True)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("jobs", "STATE", "ftjob-none"), "no job 'ftjob-none'"),
        (("jobs", "STATE", "--cancel"), "--cancel needs a job"),
        (("jobs", "nowhere"), "holds no jobs"),
        (("keys", "STATE", "--create", "a:b"), "letters, digits"),
        (("keys", "STATE", "--revoke", "sk-none"), "0 valid keys"),
    ],
)
def test_a_mistake_is_one_line_and_status_two(
    state: Path, words: tuple[str, ...], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*(str(state) if word == "STATE" else word for word in words)) == 2
    told = capsys.readouterr().err
    assert text in told
    assert "Traceback" not in told


def test_a_key_is_shown_once_and_revoked_by_itself(
    state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("keys", state, "--create", "support") == 0
    key = capsys.readouterr().out.strip()
    assert key.startswith("sk-")
    assert run("keys", state, "--json") == 0
    out, told = capsys.readouterr()
    assert key not in out + told
    assert json.loads(out)[0]["project"] == "support"
    assert "valid" in told
    assert run("keys", state, "--revoke", key) == 0
    assert "revoked" in capsys.readouterr().err
