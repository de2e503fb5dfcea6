"""The same recipe under torchrun: two processes leave the run that one leaves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_train import make_recipe

from timechat.errors import PlanError
from timechat.manifest import newest, verify
from timechat.model.load import load, resolve
from timechat.model.ranks import Ranks
from timechat.recipe import parse_recipe
from timechat.recipe_file import dump_recipe
from timechat.stages.training.context import build_context
from timechat.stages.watch import Watcher
from timechat.store.files import read_json, read_lines

METHODS = {"lora": {"method": "lora", "rank": 4}, "full": {"method": "full"}}


def command(folder: Path, name: str, out: str, processes: int) -> subprocess.CompletedProcess[str]:
    start = [sys.executable, "-W", "ignore"]
    if processes > 1:
        start += ["-m", "torch.distributed.run", "--standalone"]
        start += ["--nproc-per-node", str(processes)]
    return subprocess.run(
        [*start, "-m", "timechat", "train", str(folder / f"{name}.yaml"), "--out", out, "--json"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_two_processes_leave_the_run_that_one_leaves(name: str, tmp_path: Path) -> None:
    raw = make_recipe(tmp_path, epochs=2, validations=2).model_dump(mode="json")
    adapt = {**METHODS[name], "strength": 1.0}
    recipe = parse_recipe({**raw, "adapt": adapt, "evaluate": {"max_questions": 4}})
    (tmp_path / f"{name}.yaml").write_text(dump_recipe(recipe))
    for out, processes in (("one", 1), ("two", 2)):
        done = command(tmp_path, name, out, processes)
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count('"verdict"') >= 1
        assert len(done.stdout.strip().splitlines()) == 1
    one, two = (list(read_lines(tmp_path / out / "metrics.jsonl")) for out in ("one", "two"))
    assert [set(row) for row in one] == [set(row) for row in two]
    for a, b in zip(one, two, strict=True):
        for key in a.keys() & {"loss", "validation_loss", "grad_norm"}:
            assert a[key] == pytest.approx(b[key], rel=0.02)  # bf16 where the machine has it
    last = newest(tmp_path / "two")
    assert last is not None
    verify(last)
    assert (last / "state" / "optimizer-2of2.safetensors").is_file()
    checks = read_json(tmp_path / "two" / "report.json")["checks"]
    assert all(check["passed"] for check in checks[:5]), checks
    load(resolve(str(tmp_path / "two")))


def test_more_processes_than_rows_of_a_step_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="20 processes cannot share a step of 8 of"):
        build_context(make_recipe(tmp_path), tmp_path / "run", Watcher(), ranks=Ranks(0, 20))
