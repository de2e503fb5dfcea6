"""Each method through whole runs, evaluations and all, killed on the way: the same bytes."""

from __future__ import annotations

import json
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from harness import Zygote, answers, proof
from test_disk import errors_of

# Left to `make test-faults`.
LATER = (pytest.mark.slow, pytest.mark.faults)
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"method": "lora", "rank": 2},
    "full": {"method": "full"},
    "layers": {"method": "layers", "layers": 1},
    "qlora": {"method": "qlora", "rank": 2, "bits": 4},
}


def write_for(recipe: Path, folder: Path, method: str) -> Path:
    """The tiny recipe with another method, at a strength that is chosen at the end."""
    content = {**json.loads(recipe.read_text()), "adapt": METHODS[method]}
    path = folder / f"{method}.yaml"
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("method", "kills"),
    [
        ("lora", 3),
        pytest.param("lora", 20, marks=LATER),
        pytest.param("full", 8, marks=LATER),
        pytest.param("layers", 8, marks=LATER),
        pytest.param("qlora", 8, marks=LATER),
    ],
)
def test_a_whole_run_killed_anywhere_ends_in_the_same_bytes(
    zygote: Zygote, recipe: Path, tmp_path: Path, method: str, kills: int
) -> None:
    """From preparing rows to the report."""
    path = write_for(recipe, tmp_path, method)
    whole, out = tmp_path / "whole", tmp_path / "run"
    started = time.monotonic()
    assert zygote.run(whole, path, learn=False) == 0, errors_of(whole)
    took = time.monotonic() - started
    chance = random.Random(kills)
    for _ in range(kills):
        moment = chance.uniform(0.02, took)
        status = zygote.kill_after(moment, out, path, signal.SIGKILL, learn=False)
        assert status in (0, -9), errors_of(out)
    assert zygote.run(out, path, learn=False) == 0, errors_of(out)
    assert proof(out) == proof(whole)
    assert answers(out) == answers(whole)
