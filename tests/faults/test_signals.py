"""SIGTERM, Ctrl-C, SIGSTOP: asked once it saves and ends, twice it ends, stopped it waits."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import Zygote, write_recipe

from timechat.store.files import read_lines

# Left to `make test-faults`.
LATER = (pytest.mark.slow, pytest.mark.faults)
Finish = Callable[[Path], dict[str, Any]]


def await_step(out: Path, step: int, patience_s: float = 60.0) -> None:
    """Wait until the run's log holds that step."""
    for _ in range(round(100 * patience_s)):
        if (out / "metrics.jsonl").is_file() and any(
            row["step"] >= step and "loss" in row for row in read_lines(out / "metrics.jsonl")
        ):
            return
        time.sleep(0.01)
    raise TimeoutError(f"{out} never came to step {step}")


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=LATER)]
)
def test_a_signal_saves_says_how_to_go_on_and_exits_as_promised(
    zygote: Zygote,
    recipe: Path,
    uninterrupted: Any,
    finish: Finish,
    tmp_path: Path,
    number: int,
    status: int,
) -> None:
    out = tmp_path / "run"
    pid = zygote.start(out, recipe)
    await_step(out, 3)
    os.kill(pid, number)
    assert zygote.wait() == status
    last = list(read_lines(out / "history.jsonl"))[-1]
    assert last["event"] == "stopped"
    assert (out / "checkpoints" / f"step-{last['step']:06d}" / "manifest.json").is_file()
    assert finish(out) == uninterrupted


def test_a_run_whose_starter_was_killed_saves_and_ends(
    zygote: Zygote, recipe: Path, uninterrupted: Any, finish: Finish, tmp_path: Path
) -> None:
    """As when the server that runs a fine-tuning job is killed."""
    out = tmp_path / "run"
    with subprocess.Popen(["sleep", "600"]) as starter:
        zygote.start(out, recipe, parent=starter.pid)
        await_step(out, 3)
        starter.kill()
    assert zygote.wait() == 143
    assert list(read_lines(out / "history.jsonl"))[-1]["event"] == "stopped"
    assert finish(out) == uninterrupted


def stop_at_random(zygote: Zygote, recipe: Path, out: Path, times: int, seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(times):
        number = chance.choice([signal.SIGTERM, signal.SIGINT])
        status = zygote.kill_after(chance.uniform(0.05, zygote.whole_s), out, recipe, number)
        # Before there is anything to finish, the signal ends the child in its own way.
        assert status in (0, 128 + number, 70, -number)


@pytest.mark.slow
@pytest.mark.faults
def test_forty_signals_at_random_moments_change_no_bit(
    zygote: Zygote, recipe: Path, uninterrupted: Any, finish: Finish, tmp_path: Path
) -> None:
    for seed in range(5):
        out = tmp_path / f"run-{seed}"
        stop_at_random(zygote, recipe, out, 8, seed)
        assert finish(out) == uninterrupted


@pytest.mark.slow
@pytest.mark.faults
def test_two_signals_end_the_run_at_once_and_lose_only_steps(
    zygote: Zygote, uninterrupted: Any, recipe: Path, finish: Finish, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    pid = zygote.start(out, recipe)
    await_step(out, 3)
    os.kill(pid, signal.SIGSTOP)  # so that both are there before the first is answered
    os.kill(pid, signal.SIGTERM)
    os.kill(pid, signal.SIGINT)
    os.kill(pid, signal.SIGCONT)
    assert zygote.wait() in (130, 143)
    assert finish(out) == uninterrupted


@pytest.mark.slow
@pytest.mark.faults
def test_a_run_that_is_frozen_and_thawed_changes_no_bit(
    zygote: Zygote, recipe: Path, uninterrupted: Any, finish: Finish, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    pid = zygote.start(out, recipe)
    await_step(out, 2)
    os.kill(pid, signal.SIGSTOP)
    timer = threading.Timer(0.3, os.kill, (pid, signal.SIGCONT))
    timer.start()
    assert zygote.wait() == 0
    timer.join()
    assert finish(out) == uninterrupted


def test_a_second_process_on_one_run_is_refused_by_name(
    zygote: Zygote, recipe: Path, tmp_path: Path
) -> None:
    from timechat.errors import RunError
    from timechat.stages.runs.listing import describe, remove
    from timechat.stages.training.train import resume

    out = tmp_path / "run"
    pid = zygote.start(out, write_recipe(tmp_path, epochs=40))
    await_step(out, 1)
    with pytest.raises(RunError, match=f"in use by process {pid}"):
        resume(out)
    with pytest.raises(RunError, match="in use"):
        remove(str(out))
    assert describe(out).state == "running"
    os.kill(pid, signal.SIGKILL)
    assert zygote.wait() == -9
    assert describe(out).state == "interrupted"
    assert remove(str(out)) > 0
    assert not out.exists()
