"""One flipped byte, in each file of a checkpoint in turn: found, named, fallen back from."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import Zygote

from timechat.errors import CheckpointError
from timechat.manifest import checkpoints, newest, verify
from timechat.model.load import resolve

Finish = Callable[[Path], dict[str, Any]]


@pytest.fixture(scope="module")
def done(zygote: Zygote, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("flips") / "run"
    assert zygote.run(out, recipe) == 0
    return out


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


def test_a_flip_in_any_file_is_named_and_fallen_back_from(done: Path, tmp_path: Path) -> None:
    last, before = list(checkpoints(done))[:2]
    files = [p.relative_to(last) for p in sorted(last.rglob("*")) if p.is_file()]
    assert len(files) >= 9
    for name in files:
        run = tmp_path / "run"
        shutil.copytree(done, run, symlinks=True)
        flip(run / "checkpoints" / last.name / name)
        with pytest.raises(CheckpointError, match=name.name.replace(".", r"\.")):
            verify(run / "checkpoints" / last.name)
        said: list[str] = []
        assert newest(run, said.append) == run / "checkpoints" / before.name
        assert name.name in said[0]
        assert f"damaged-{last.name}" in said[0]
        shutil.rmtree(run)


def test_answering_falls_back_too_and_says_so_but_not_from_what_was_named(
    done: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(done, run, symlinks=True)
    best = (run / "best").resolve()
    flip(best / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="adapter_model"):
        resolve(f"{run}@{best.name}")
    said: list[str] = []
    found = resolve(str(run), said.append)
    assert found.adapter is not None
    assert found.adapter != best
    assert any("adapter_model.safetensors is not what was saved" in line for line in said)


@pytest.mark.slow
@pytest.mark.faults
def test_a_run_whose_newest_checkpoint_is_damaged_ends_in_the_same_bytes(
    done: Path, uninterrupted: Any, finish: Finish, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(done, run, symlinks=True)
    flip(next(iter(checkpoints(run))) / "state" / "optimizer.safetensors")
    assert finish(run) == uninterrupted
    assert "set aside as damaged-step" in Path(f"{run}.log").read_text()
