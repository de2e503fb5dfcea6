"""The worker: a job's whole story told once and in order, whatever is killed on the way."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from timechat.ledger import jobs as queue
from timechat.ledger.database import open_ledger
from timechat.ledger.files import Files
from timechat.ledger.jobs import Job
from timechat.stages import worker as room
from timechat.stages.jobs import check_hyperparameters
from timechat.stages.worker import Worker, take_lock

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
    monkeypatch.setattr(room, "BEAT_S", 0.05)
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
    return worker.jobs.create(
        project="lab", model="base", base="/base", training_file=upload(worker.files, rows),
        validation_file=None, suffix="s", seed=1, metadata=None,
        hyperparameters=check_hyperparameters(hyperparameters),
    )  # fmt: skip


def wait(worker: Worker, job: Job, *states: str, seconds: float = 60) -> Job:
    deadline = time.monotonic() + seconds
    while True:
        found = worker.jobs.get(job.id)
        assert found is not None
        if found.status in (states or ("succeeded", "failed", "cancelled")):
            return found
        assert time.monotonic() < deadline, (found, story(worker, found))
        time.sleep(0.02)


def story(worker: Worker, job: Job) -> list[str]:
    page = worker.jobs.events(job.id, None, 1000, newest_first=False)
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
    assert lines[1:3] == ["1,1.0,,,,", "2,0.5,,1.0,0.5,1.0"]
    assert json.loads(report)["verdict"] == "improved"
    page = worker.jobs.checkpoints(done.id, None, 10)
    assert page is not None
    for one in page[0]:
        assert all(isinstance(value, float) for value in one.metrics.values())
    assert [model.name for model in worker.jobs.models("lab")] == [done.fine_tuned_model]


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
    worker.command = (sys.executable, "-S", TRAINER, "0.15")
    job = wait(worker, submit(worker), "running")
    folder = worker.state / "jobs" / job.id
    while not list((folder / "run" / "checkpoints").glob("step-*")):
        time.sleep(0.02)
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
    worker.jobs.cancel(job.id)
    lock = take_lock(folder)
    assert lock is not None
    lock.close()
    assert story(worker, job)[-1] == "The job was cancelled"


def test_a_paused_job_goes_on_where_it_was(worker: Worker) -> None:
    worker.command = (sys.executable, "-S", TRAINER, "0.2")
    job = wait(worker, submit(worker), "running")
    run = worker.state / "jobs" / job.id / "run"
    while not list((run / "checkpoints").glob("step-*")):
        time.sleep(0.02)
    assert worker.jobs.pause(job.id).status == "queued"
    time.sleep(0.3)
    worker.command = (sys.executable, "-S", TRAINER, "0.02")
    worker.jobs.resume(job.id)
    done = wait(worker, job)
    assert [m for m in story(worker, done) if m.startswith(("Step", "Checkpoint"))] == [
        m for m in expected(done) if m.startswith(("Step", "Checkpoint"))
    ]
    assert int((run / "starts").read_text().split()[-1]) >= 2


@pytest.mark.slow
@pytest.mark.parametrize("ledger_url", ["sqlite", "postgresql"], indirect=True)
def test_workers_killed_at_random_lose_and_double_nothing(
    ledger_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "LEASE_MS", 1500)
    ledger = open_ledger(ledger_url)
    idle = Worker(ledger, tmp_path)
    made = [submit(idle) for _ in range(5)]
    chance = random.Random(7)
    script = str(Path(__file__).with_name("work.py"))
    for _ in range(12):
        process = subprocess.Popen([sys.executable, script, ledger_url, str(tmp_path), "0.3"])
        time.sleep(chance.uniform(4, 12))
        process.kill()
        process.wait()
    last = subprocess.Popen([sys.executable, script, ledger_url, str(tmp_path), "0.05"])
    done = [wait(idle, job, seconds=300) for job in made]
    last.terminate()
    last.wait()
    for job in done:
        assert job.status == "succeeded"
        told = story(idle, job)
        told = [m for m in told if not m.startswith(("Continuing", "Training was killed"))]
        assert told == expected(job)
        assert len(job.result_files) == 2
    ledger.close()
