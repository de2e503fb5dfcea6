"""Two processes learn what one learns: same losses, and each reads what the other saved."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import many
import pytest
import torch
from many import CASES, IDENTITY
from methods import METHODS, build, start
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from timechat.model.ranks import ALONE, Ranks
from timechat.training import checkpoint
from timechat.training.pieces import Pieces, write_pieces

each_case = pytest.mark.parametrize(("family", "method"), CASES)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """The folder of all checkpoints, and what one process and two found."""
    folder = tmp_path_factory.mktemp("ranks")
    alone = {}
    for family, method in CASES:
        name = f"{family}-{method}"
        made = many.trainer(family, method)
        records = many.run(made, 0, 3)
        many.save(made, folder / f"one-{name}")
        alone[name] = records + many.run(made, 3, 6)
    here = Path(__file__).parent
    paths = [str(here), str(here.parent), *sys.path]
    done = subprocess.run(
        [
            *(sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", "2", str(here / "many.py"), str(folder)),
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = [json.loads((folder / f"found-{rank}.json").read_text()) for rank in (0, 1)]
    for name in alone:  # both ranks say the same
        assert found[0][name][:2] == found[1][name][:2]
    return folder, alone, found[0]


@each_case
def test_losses_of_two_processes_equal_those_of_one(both: Any, family: str, method: str) -> None:
    _, alone, found = both
    name = f"{family}-{method}"
    torch.testing.assert_close(
        torch.tensor(found[name][0]), torch.tensor(alone[name]), rtol=1e-4, atol=1e-5
    )


@each_case
def test_two_processes_go_on_from_what_one_saved(both: Any, family: str, method: str) -> None:
    _, alone, found = both
    name = f"{family}-{method}"
    torch.testing.assert_close(
        torch.tensor(found[name][1]), torch.tensor(alone[name][3:]), rtol=1e-4, atol=1e-5
    )


@each_case
def test_one_process_goes_on_from_what_two_saved(both: Any, family: str, method: str) -> None:
    folder, alone, _ = both
    name = f"{family}-{method}"
    made = many.trainer(family, method)
    checkpoint.restore(folder / f"two-{name}", made, IDENTITY)
    torch.testing.assert_close(
        torch.tensor(many.run(made, 3, 6)), torch.tensor(alone[name][3:]), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("name", ["llama-full", "llama-layers", "llama-tied-full"])
def test_plain_transformers_reads_what_two_processes_saved(both: Any, name: str) -> None:
    folder = both[0]
    one, two = (
        AutoModelForCausalLM.from_pretrained(folder / f"{who}-{name}", dtype=torch.float32)
        for who in ("one", "two")
    )
    ids = torch.tensor([[5, 9, 100, 31, 7]])
    with torch.no_grad():
        torch.testing.assert_close(one(ids).logits, two(ids).logits, rtol=1e-4, atol=1e-4)


def test_each_rank_writes_its_own_rows_of_weights_and_optimizer(both: Any) -> None:
    state = both[0] / "two-llama-full" / "state"
    for kind in ("weights", "average", "optimizer"):
        sizes = []
        for rank in (1, 2):
            with safe_open(state / f"{kind}-{rank}of2.safetensors", framework="pt") as file:
                keys = [k for k in file.keys() if not k.endswith("step")]  # noqa: SIM118
                sizes.append(sum(file.get_tensor(k).numel() for k in keys))
        whole = Pieces(both[0] / "one-llama-full" / "state", kind)
        total = sum(whole.read(k).numel() for k in whole.keys() if not k.endswith("step"))  # noqa: SIM118
        assert sum(sizes) == total
        assert sizes[1] > 0.35 * total  # all but the head, which the first rank writes
    assert (both[0] / "two-llama-full" / "manifest.json").is_file()


def test_adapters_are_whole_on_every_rank(both: Any) -> None:
    state = both[0] / "two-llama-lora" / "state"
    with safe_open(state / "weights-2of2.safetensors", framework="pt") as file:
        assert not list(file.keys())


@pytest.mark.parametrize("written", [1, 2, 3, 5])
@pytest.mark.parametrize("wanted", [1, 2, 4])
def test_rows_saved_by_any_number_of_ranks_are_read_by_any_other(
    written: int, wanted: int, tmp_path: Path
) -> None:
    tensor, small = torch.randn(7, 3), torch.tensor(4.0)
    for number in range(written):
        size = -(-7 // written)
        first = min(7, number * size)
        part = tensor[first : first + size]
        rows = (first, 7) if written > 1 else None
        write_pieces(tmp_path, "x", {"a": (part, rows), "b": (small, None)}, Ranks(number, written))
    found = Pieces(tmp_path, "x")
    assert torch.equal(found.read("b"), small)
    assert torch.equal(found.read("a"), tensor)
    size = -(-7 // wanted)
    parts = [found.read("a", (first, 7), min(size, 7 - first)) for first in range(0, 7, size)]
    assert torch.equal(torch.cat(parts), tensor)
    assert found.read("a", (7, 7), 0).shape == (0, 3)


def test_outside_of_torchrun_there_is_one_rank() -> None:
    assert ALONE.take([1, 2, 3]) == [1, 2, 3]
    assert ALONE.total(2, 3) == [2, 3]
    assert METHODS["full"]["method"] == "full"
    assert start(build("llama"), "full").ranks is ALONE
