"""SIGKILL anywhere: the run goes on to the bytes that it would have ended in without it."""

from __future__ import annotations

import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import COUNT, KILL_AFTER, KILL_BEFORE, Zygote

# Left to `make test-faults`.
LATER = (pytest.mark.slow, pytest.mark.faults)
Finish = Callable[[Path], dict[str, Any]]


def kill_at_random(zygote: Zygote, recipe: Path, out: Path, kills: int, seed: int) -> int:
    """Kill a run at random times until it was killed often enough or ended; returns how often."""
    chance = random.Random(seed)
    done = 0
    while done < kills:
        if (
            zygote.kill_after(chance.uniform(0.02, zygote.whole_s), out, recipe, signal.SIGKILL)
            == 0
        ):
            break
        done += 1
    return done


@pytest.mark.slow
@pytest.mark.faults
def test_three_random_kills_change_no_bit(
    zygote: Zygote, recipe: Path, uninterrupted: Any, finish: Finish, tmp_path: Path
) -> None:
    kill_at_random(zygote, recipe, tmp_path / "run", 3, seed=1)
    assert finish(tmp_path / "run") == uninterrupted


@pytest.mark.slow
@pytest.mark.faults
def test_a_hundred_random_kills_change_no_bit(
    zygote: Zygote, recipe: Path, uninterrupted: Any, finish: Finish, tmp_path: Path
) -> None:
    done = seed = 0
    while done < 100:
        out = tmp_path / f"run-{seed}"
        done += kill_at_random(zygote, recipe, out, 20, seed)
        assert finish(out) == uninterrupted
        shutil.rmtree(out)
        seed += 1


@pytest.fixture(scope="module")
def calls(zygote: Zygote, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> int:
    """How many calls a whole run makes below its folder of checkpoints."""
    if not zygote.has_shim:
        return 0
    out = tmp_path_factory.mktemp("counted") / "run"
    assert zygote.run(out, recipe, (str(out / "checkpoints"), COUNT, 0, 0)) == 0
    return int(Path(f"{out}.calls").read_text())


@pytest.mark.parametrize(
    "share", [pytest.param(0.02, marks=LATER), 0.4, pytest.param(0.7, marks=LATER)]
)
def test_a_kill_at_a_system_call_of_a_save_changes_no_bit(
    breaking: Zygote,
    recipe: Path,
    uninterrupted: Any,
    finish: Finish,
    tmp_path: Path,
    calls: int,
    share: float,
) -> None:
    out = tmp_path / "run"
    at = max(1, int(share * calls))
    assert breaking.run(out, recipe, (str(out / "checkpoints"), KILL_BEFORE, at, 0)) == -9
    assert finish(out) == uninterrupted


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.parametrize("how", [KILL_BEFORE, KILL_AFTER])
def test_a_kill_before_and_after_every_system_call_of_a_save_changes_no_bit(
    breaking: Zygote,
    recipe: Path,
    uninterrupted: Any,
    finish: Finish,
    tmp_path: Path,
    calls: int,
    how: int,
) -> None:
    """The third save of four, the first that takes an older checkpoint away, call by call, with
    the end of the second and the beginning of the fourth; each killed run is brought to its end."""
    assert calls > 300
    for at in range(calls // 2 - 10, calls * 3 // 4 + 10):
        out = tmp_path / f"run-{at}"
        status = breaking.run(out, recipe, (str(out / "checkpoints"), how, at, 0))
        assert status == -9, f"call {at} of {calls} ended with {status}"
        assert finish(out) == uninterrupted, f"killed at call {at} of {calls}"
        shutil.rmtree(out)
