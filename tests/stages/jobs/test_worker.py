"""The worker: a job's whole story told once and in order, whatever is killed on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from timechat.ledger.database import Ledger, open_ledger
from timechat.ledger.files import Files
from timechat.ledger.jobs import OPEN, Job, Jobs
from timechat.ledger.models import Models
from timechat.stages.jobs import events as run_events
from timechat.stages.jobs import executor
from timechat.stages.jobs import worker as room
from timechat.stages.jobs.job import check_hyperparameters
from timechat.stages.jobs.process import take_lock
from timechat.stages.jobs.worker import Worker

TRAINER = str(Path(__file__).with_name("trainer.py"))
STORY = [
    "Created fine-tuning job: ID", "Validating training file: FILE",
    "Files validated, moving job to queued state", "Plan: 6 steps in about 1 s, 0.00 GiB",
    "Fine-tuning job started", "Step 1/6: training loss=1.0000",
    "Step 2/6: training loss=0.5000, validation loss=1.0000, full validation loss=1.0000",
    "Checkpoint created at step 2: NAME:ckpt-step-2", "Step 3/6: training loss=0.3333",
    "Step 4/6: training loss=0.2500, validation loss=0.5000, full validation loss=0.5000",
    "Checkpoint created at step 4: NAME:ckpt-step-4", "Step 5/6: training loss=0.2000",
    "Step 6/6: training loss=0.1667, validation loss=0.3333, full validation loss=0.3333",
    "Checkpoint created at step 6: NAME:ckpt-step-6", "It rose.",
    "New fine-tuned model created: NAME", "The job has successfully completed",
]  # fmt: skip


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[Worker]:
    """A worker whose child is quick."""
    monkeypatch.setattr(room, "LOOK_S", 0.05)
    monkeypatch.setattr(executor, "BEAT_S", 0.05)
    ledger = open_ledger(tmp_path / "ledger.db")
    made = Worker(ledger, tmp_path, command=(sys.executable, "-S", TRAINER, "0.02"))
    thread = threading.Thread(target=made.run)
    thread.start()
    yield made
    made.stop()
    thread.join()


def upload(files: Files, rows: list[Any] | None = None) -> str:
    if rows is None:
        rows = [
            {"messages": [{"role": "user", "content": f"q{n}"},
                          {"role": "assistant", "content": f"a{n}"}]}
            for n in range(12)
        ]  # fmt: skip
    beside = files.folder / ".new"
    beside.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return files.keep(beside, "", "lab", "rows.jsonl", "fine-tune").id


def submit(worker: Worker, rows: list[Any] | None = None, **hyperparameters: Any) -> Job:
    return Jobs(worker.ledger).create(
        project="lab", model="base", base="/base", training_file=upload(worker.files, rows),
        validation_file=None, suffix="s", seed=1, metadata=None,
        hyperparameters=check_hyperparameters(hyperparameters),
    )  # fmt: skip


def wait(worker: Worker, job: Job, *states: str, seconds: float = 60) -> Job:
    deadline = time.monotonic() + seconds
    while True:
        found = Jobs(worker.ledger).get(job.id)
        assert found is not None
        if found.status in (states or ("succeeded", "failed", "cancelled")):
            return found
        assert time.monotonic() < deadline, (found, story(worker, found))
        time.sleep(0.02)


def story(worker: Worker, job: Job) -> list[str]:
    page = Jobs(worker.ledger).events(job.id, None, 1000, newest_first=False)
    assert page is not None
    return [event.message for event in page[0]]


def expected(job: Job) -> list[str]:
    names = {"ID": job.id, "FILE": job.training_file, "NAME": job.fine_tuned_model or ""}
    out = STORY
    for word, value in names.items():
        out = [line.replace(word, value) for line in out]
    return out


def test_a_job_tells_its_whole_story_and_leaves_its_files(worker: Worker) -> None:
    done = wait(worker, submit(worker))
    assert done.status == "succeeded"
    assert story(worker, done) == expected(done)
    assert done.fine_tuned_model == f"ft:base:lab:s:{done.id[6:16]}"
    assert done.trained_tokens == 60
    csv, report = (worker.files.path(name).read_text() for name in done.result_files)
    lines = csv.splitlines()
    assert (
        lines[0]
        == "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy,full_valid_loss"
    )
    assert lines[1:3] == ["1,1.0,0.0,,,", "2,0.5,0.5,1.0,0.5,1.0"]
    assert json.loads(report)["verdict"] == "improved"
    page = Jobs(worker.ledger).checkpoints(done.id, None, 10)
    assert page is not None
    for one in page[0]:
        assert all(isinstance(value, float) for value in one.metrics.values())
    assert [model.name for model in Models(worker.ledger).list("lab")] == [done.fine_tuned_model]


@pytest.mark.parametrize(
    ("rows", "code", "expected"),
    [
        ([{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": f"{n}"}]}
          for n in range(9)], "invalid_n_examples", "has 9 example"),
        ([{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": f"{n}"}]}
          for n in range(12)] + [{"messages": [{"role": "wizard", "content": "x"}]}],
         "invalid_training_file", "line 13: unknown_role"),
    ],
)  # fmt: skip
def test_a_bad_file_fails_the_job_with_line_and_reason(
    worker: Worker, rows: list[Any], code: str, expected: str
) -> None:
    failed = wait(worker, submit(worker, rows))
    assert failed.status == "failed"
    assert failed.error is not None
    assert failed.error["param"] == "training_file"
    assert failed.error["code"] == code
    assert expected in failed.error["message"]


def test_a_child_that_is_killed_goes_on_from_its_checkpoint(worker: Worker) -> None:
    worker.command = (sys.executable, "-S", TRAINER, "0.7")
    job = wait(worker, submit(worker), "running")
    folder = worker.state / "jobs" / job.id
    while not list((folder / "run" / "checkpoints").glob("step-*")):
        time.sleep(0.02)
    worker.command = (sys.executable, "-S", TRAINER, "0.02")
    os.kill(int((folder / "child.pid").read_text()), signal.SIGKILL)
    done = wait(worker, job)
    told = story(worker, done)
    extra = [line for line in told if line not in expected(done)]
    assert extra == ["Training was killed (signal 9)", "Continuing from the newest checkpoint"]
    assert [line for line in told if line not in extra] == expected(done)
    assert (folder / "run" / "starts").read_text().split()[1] in ("2", "4")


def test_a_cancelled_job_ends_its_child_at_once(worker: Worker) -> None:
    worker.command = (sys.executable, "-S", TRAINER, "30")
    job = wait(worker, submit(worker), "running")
    folder = worker.state / "jobs" / job.id
    while not (folder / "run" / "starts").is_file():
        time.sleep(0.02)
    Jobs(worker.ledger).cancel(job.id)
    lock = take_lock(folder)
    assert lock is not None
    lock.close()
    assert story(worker, job)[-1] == "The job was cancelled"


def test_a_paused_job_goes_on_where_it_was(worker: Worker) -> None:
    worker.command = (sys.executable, "-S", TRAINER, "0.7")
    job = wait(worker, submit(worker), "running")
    run = worker.state / "jobs" / job.id / "run"
    while not list((run / "checkpoints").glob("step-*")):
        time.sleep(0.02)
    assert Jobs(worker.ledger).pause(job.id).status == "queued"
    time.sleep(0.3)
    worker.command = (sys.executable, "-S", TRAINER, "0.02")
    Jobs(worker.ledger).resume(job.id)
    done = wait(worker, job)
    assert [m for m in story(worker, done) if m.startswith(("Step", "Checkpoint"))] == [
        m for m in expected(done) if m.startswith(("Step", "Checkpoint"))
    ]
    assert int((run / "starts").read_text().split()[-1]) >= 2


def test_a_child_that_is_asked_to_end_by_somebody_else_goes_on_too(worker: Worker) -> None:
    worker.command = (sys.executable, "-S", TRAINER, "0.7", "polite")
    job = wait(worker, submit(worker), "running")
    folder = worker.state / "jobs" / job.id
    while not list((folder / "run" / "checkpoints").glob("step-*")):
        time.sleep(0.02)
    worker.command = (sys.executable, "-S", TRAINER, "0.02")
    os.kill(int((folder / "child.pid").read_text()), signal.SIGTERM)
    done = wait(worker, job)
    assert "Training was killed (signal 15)" in story(worker, done)
    assert done.status == "succeeded"


def test_a_child_that_is_killed_again_and_again_without_getting_further_fails_the_job(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor, "MAX_ATTEMPTS", 3)
    worker.command = (sys.executable, "-S", TRAINER, "0.01", "dies")
    failed = wait(worker, submit(worker))
    assert failed.status == "failed"
    assert failed.error is not None
    assert (
        "killed 3 times (the last by signal 9) without getting further" in failed.error["message"]
    )
    assert story(worker, failed).count("Training was killed (signal 9)") == 2


def test_training_goes_on_while_the_ledger_is_out_of_reach(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker.command = (sys.executable, "-S", TRAINER, "0.15")
    job = wait(worker, submit(worker), "running")
    run = worker.state / "jobs" / job.id / "run"
    while not (run / "starts").is_file():
        time.sleep(0.02)

    def refuse(_: Ledger) -> Any:
        raise OperationalError("BEGIN", None, Exception("gone away"))

    with monkeypatch.context() as outage:
        outage.setattr(Ledger, "write", refuse)
        while not (run / "report.json").is_file():
            time.sleep(0.02)
        time.sleep(0.2)
    done = wait(worker, job)
    assert story(worker, done) == expected(done)
    assert (run / "starts").read_text() == "0\n"


def test_two_jobs_train_at_once_where_that_was_asked_for(worker: Worker) -> None:
    worker.at_once = 2
    worker.command = (sys.executable, "-S", TRAINER, "60")
    made = [submit(worker) for _ in range(3)]
    for job in made[:2]:
        wait(worker, job, "running")
    third = wait(worker, made[2], "queued")
    while third.plan is None:
        time.sleep(0.02)
        third = wait(worker, made[2], "queued")
    time.sleep(0.2)
    assert [wait(worker, job, *OPEN).status for job in made] == ["running", "running", "queued"]


def test_a_job_is_checked_and_planned_while_another_trains(worker: Worker) -> None:
    worker.command = (sys.executable, "-S", TRAINER, "60")
    first = wait(worker, submit(worker), "running")
    nine = [{"messages": [{"role": "user", "content": "q"}]}] * 9
    bad, good = submit(worker, nine), submit(worker)
    assert wait(worker, bad).status == "failed"
    planned = wait(worker, good, "queued")
    while planned.plan is None:
        time.sleep(0.02)
        planned = wait(worker, good, "queued")
    assert wait(worker, first, *OPEN).status == "running"


def test_a_worker_that_is_stopped_lets_the_next_go_on_at_once(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path / "ledger.db")
    for pause_s in ("30", "0.02"):
        command = (sys.executable, "-S", TRAINER, pause_s)
        worker = Worker(ledger, tmp_path, command=command)
        thread = threading.Thread(target=worker.run)
        if pause_s == "30":
            job = submit(worker)
            thread.start()
            wait(worker, job, "running")
            worker.stop()
        else:
            thread.start()
            assert wait(worker, job, seconds=20).status == "succeeded"
            worker.stop()
        thread.join()


def test_only_the_newest_three_checkpoints_of_a_job_can_be_chatted_with(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_events, "KEPT", 2)
    done = wait(worker, submit(worker))
    page = Jobs(worker.ledger).checkpoints(done.id, None, 10)
    assert page is not None
    assert [point.step for point in page[0]] == [6, 4]
    name = done.fine_tuned_model
    assert Models(worker.ledger).get(f"{name}:ckpt-step-2", "lab") is None
    assert Models(worker.ledger).get(f"{name}:ckpt-step-4", "lab") is not None
    assert "Checkpoint of step 2 removed: the newest 2 are kept" in story(worker, done)
    run = worker.state / "jobs" / done.id / "run"
    assert json.loads((run / "pinned.json").read_text()) == [4, 6]


@pytest.mark.parametrize("ledger_url", ["sqlite", "postgresql"], indirect=True)
def test_a_killed_worker_loses_and_doubles_nothing(ledger_url: str, tmp_path: Path) -> None:
    """A slice of tests/faults/test_job_kills.py."""
    ledger = open_ledger(ledger_url)
    idle = Worker(ledger, tmp_path)
    made = [submit(idle) for _ in range(2)]
    script = [sys.executable, str(Path(__file__).with_name("work.py")), ledger_url, str(tmp_path)]
    for count in (0, 1):  # each is killed with a child that trains
        process = subprocess.Popen([*script, "0.3"])
        run = tmp_path / "jobs" / made[0].id / "run"
        while not (run / "starts").is_file() or len((run / "starts").read_text().split()) <= count:
            time.sleep(0.02)
        process.kill()
        process.wait()
    last = subprocess.Popen([*script, "0.02"])
    done = [wait(idle, job) for job in made]
    last.kill()
    last.wait()
    for job in done:
        told = story(idle, job)
        told = [m for m in told if not m.startswith(("Continuing", "Training was killed"))]
        assert told == expected(job)
        assert len(job.result_files) == 2
    assert done[0].finished_ms < done[1].finished_ms  # type: ignore[operator]
    ledger.close()
