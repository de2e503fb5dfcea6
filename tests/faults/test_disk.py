"""Disks that fill, fail and write short: one clear error, the older checkpoint, and on it goes."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import FAIL_FROM, FAIL_ONCE, SHORT_WRITE, Zygote

from timechat.manifest import newest, verify
from timechat.stages.runs import keep

# Left to `make test-faults`.
LATER = (pytest.mark.slow, pytest.mark.faults)
Finish = Callable[[Path], dict[str, Any]]


def errors_of(out: Path) -> list[str]:
    """The last lines that the run said before it ended."""
    return Path(f"{out}.log").read_text().strip().splitlines()


@pytest.mark.parametrize(
    ("error", "at"),
    [
        (errno.ENOSPC, 150),
        pytest.param(errno.ENOSPC, 1, marks=LATER),
        pytest.param(errno.EIO, 1, marks=LATER),
        pytest.param(errno.EIO, 150, marks=LATER),
    ],
)
def test_a_disk_that_stops_writing_ends_the_run_and_loses_nothing(
    breaking: Zygote,
    recipe: Path,
    uninterrupted: Any,
    finish: Finish,
    tmp_path: Path,
    error: int,
    at: int,
) -> None:
    out = tmp_path / "run"
    assert breaking.run(out, recipe, (str(out / "checkpoints"), FAIL_FROM, at, error)) == 2
    assert "Traceback" not in "\n".join(errors_of(out))
    assert os.strerror(error) in errors_of(out)[-1]
    assert finish(out) == uninterrupted


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
def test_one_failed_call_anywhere_in_a_save_is_an_error_or_harmless(
    breaking: Zygote,
    recipe: Path,
    uninterrupted: Any,
    finish: Finish,
    tmp_path: Path,
    error: int,
) -> None:
    for at in range(1, 200, 3):
        out = tmp_path / f"run-{at}"
        status = breaking.run(out, recipe, (str(out / "checkpoints"), FAIL_ONCE, at, error))
        assert status in (0, 2), f"call {at}: {status}"
        if status == 2:
            assert "Traceback" not in "\n".join(errors_of(out))
        good = newest(out)
        assert good is None or verify(good)
        assert finish(out) == uninterrupted, f"call {at}"
        shutil.rmtree(out)


@pytest.mark.slow
@pytest.mark.faults
def test_writes_that_come_back_short_lose_nothing(
    breaking: Zygote, recipe: Path, uninterrupted: Any, finish: Finish, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    assert breaking.run(out, recipe, (str(out), SHORT_WRITE, 1, 0)) == 0
    assert finish(out) == uninterrupted


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 6 MB, which only root may make."""
    place = tmp_path / "disk"
    place.mkdir()
    ask = ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(ask, check=False, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small tmpfs")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.slow
@pytest.mark.faults
def test_a_full_disk_says_what_it_needs_and_goes_on_once_there_is_space(
    zygote: Zygote,
    recipe: Path,
    uninterrupted: Any,
    finish: Finish,
    small_disk: Path,
) -> None:
    out = small_disk / "run"
    ballast = small_disk / "ballast"
    assert zygote.run(out, recipe) == 2
    # Too small for a run from the start, and it says so.
    assert "are free" in errors_of(out)[-1]
    subprocess.run(["mount", "-o", "remount,size=40m", str(small_disk)], check=True)
    ballast.write_bytes(bytes(23_000_000))
    assert zygote.run(out, recipe) == 2
    assert "free some space, then `timechat resume" in errors_of(out)[-1]
    ballast.unlink()
    assert finish(out) == uninterrupted


def test_what_a_save_needs_is_measured_and_asked_for(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="saving step 4 needs 1,000,000,000,000 MB"):
        keep.check_space(tmp_path, 10**18, "saving step 4")
