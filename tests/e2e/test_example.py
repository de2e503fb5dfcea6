"""The flat example, run as a reader would run it, on the real starter model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from timechat.errors import FetchError
from timechat.model.starter import starter_folder

EXAMPLE = Path(__file__).parents[2] / "examples" / "loop.py"


@pytest.fixture(scope="module")
def starter() -> Path:
    try:
        return starter_folder()
    except FetchError as error:
        pytest.skip(f"the starter model cannot be fetched: {error}")


def test_the_flat_example_learns_what_it_says(starter: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLE)], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    said = {side: _lines(done.stdout, side) for side in ("before", "after")}
    assert _count_facts(said["before"]) == 0
    assert _count_facts(said["after"]) >= 2, said["after"]
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) < 200


def _lines(text: str, side: str) -> str:
    return "\n".join(line for line in text.splitlines() if line.startswith(side))


def _count_facts(answers: str) -> int:
    return sum(fact in answers for fact in ("7:40", "Odile Marsh", "14 crowns"))
