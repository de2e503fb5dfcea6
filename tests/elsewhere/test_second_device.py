"""Everything that trains and asks runs on another device than the CPU, and finds the same numbers.

No GPU is needed: the other device is one of ours (`second_device.py`), in a process of its own,
because PyTorch cannot forget a device again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
WALKS = (
    "lora", "qlora", "full", "layers-ends", "lora gpt_neox", "lora gemma", "layers recomputed",
    "layers from a trunk", "asking", "mixed",
)  # fmt: skip


@pytest.fixture(scope="module")
def found() -> dict[tuple[str, bool], dict[str, Any]]:
    places = [HERE, HERE.parent, HERE.parent / "training"]
    done = subprocess.run(
        [sys.executable, str(HERE / "walks.py")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, places))},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    lines = map(json.loads, done.stdout.splitlines())
    return {(line["walk"], line["fused"]): line for line in lines}


@pytest.mark.parametrize("fused", [False, True], ids=["textbook", "sdpa"])
@pytest.mark.parametrize("walk", WALKS[:-1])
def test_a_second_device_finds_the_same_numbers(
    found: dict[tuple[str, bool], dict[str, Any]], walk: str, fused: bool
) -> None:
    line = found[walk, fused]
    assert "error" not in line, line["error"]
    assert line["far"] == pytest.approx(line["near"], rel=1e-4, abs=1e-6)
    assert len(line["near"]) >= 12


def test_what_was_left_on_the_first_device_is_found(
    found: dict[tuple[str, bool], dict[str, Any]],
) -> None:
    assert "of the CPU among those of far" in found["mixed", False]["error"]
