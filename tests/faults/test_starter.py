"""The starter itself, killed three times and with a flipped byte: the same bytes in the end."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
from harness import Zygote, answers, proof
from test_disk import errors_of
from test_flips import flip
from test_signals import await_step
from test_train import write_rows

from timechat.manifest import checkpoints

pytestmark = [pytest.mark.slow, pytest.mark.faults]
# So that a kill falls before the first save, between two and near the end.
MOMENTS = ((2, 14), (16, 34), (36, 50))


@pytest.fixture(scope="module")
def starter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 steps of two rows each on the starter, in bf16, saved every seventh."""
    folder = tmp_path_factory.mktemp("starter")
    recipe = {
        "base": "starter",
        "data": {"train": [str(write_rows(folder / "rows.jsonl"))]},
        "adapt": {"rank": 4},
        "train": {
            "epochs": 3.4,
            "batch_rows": 2,
            "validations": 3,
            "checkpoint_every": 7,
            "learning_rate": 1e-3,
        },
        "evaluate": {"max_new_tokens": 8, "max_questions": 6},
    }
    path = folder / "starter.yaml"
    path.write_text(json.dumps(recipe))
    return path


@pytest.fixture(scope="module")
def whole(zygote: Zygote, starter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    assert zygote.run(out, starter, learn=False) == 0, errors_of(out)
    return out


def test_three_kills_on_the_starter_change_no_bit(
    zygote: Zygote, starter: Path, whole: Path, tmp_path: Path
) -> None:
    out, chance = tmp_path / "run", random.Random(int.from_bytes(os.urandom(4)))
    for first, last in MOMENTS:
        pid = zygote.start(out, starter, learn=False)
        await_step(out, chance.randint(first, last), patience_s=600.0)
        time.sleep(chance.uniform(0, 1))
        os.kill(pid, signal.SIGKILL)
        assert zygote.wait() == -9
    assert zygote.run(out, starter, learn=False) == 0, errors_of(out)
    assert proof(out) == proof(whole)
    assert answers(out) == answers(whole)


def test_a_flipped_byte_on_the_starter_is_named_and_fallen_back_from(
    zygote: Zygote, starter: Path, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(whole, out, symlinks=True)
    last = next(checkpoints(out))
    flip(last / "adapter_model.safetensors")
    assert zygote.run(out, starter, learn=False) == 0, errors_of(out)
    said = "\n".join(errors_of(out))
    assert f"{last.name} is damaged: adapter_model.safetensors is not what was saved" in said
    assert f"set aside as damaged-{last.name}" in said
    assert proof(out) == proof(whole)
    assert answers(out) == answers(whole)
