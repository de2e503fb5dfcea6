"""Products of ever new sizes leave no memory behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from timechat.model.kernels import KERNELS, keep_few_kernels
from timechat.model.load import load, resolve

CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
# Bytes that 320 products of new sizes leave behind, after 320 that fill what is kept anyway.
CHILD = """
import torch
from timechat.model.kernels import keep_few_kernels
from pathlib import Path

def resident():
    rows = dict(r.split(":", 1) for r in Path("/proc/self/status").read_text().splitlines())
    return int(rows["RssAnon"].split()[0]) * 1024

keep_few_kernels()
weight = torch.ones(96, 96, dtype=torch.bfloat16)
for number, rows in enumerate(torch.randperm(640, generator=torch.Generator().manual_seed(0))):
    if number == 320:
        before = resident()
    torch.ones(int(rows) + 1, 96, dtype=torch.bfloat16) @ weight
print(resident() - before)
"""


def growth(**given: str) -> int:
    clean = {name: value for name, value in os.environ.items() if name not in CACHES}
    environment = {**clean, **given, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", CHILD], env=environment, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self")
def test_products_of_ever_new_sizes_do_not_fill_the_memory() -> None:
    unbounded = growth(**dict.fromkeys(CACHES, "1024"))
    if unbounded < 2**26:
        pytest.skip("this machine compiles no kernel for each size of a bf16 product")
    assert growth() < unbounded / 4


def test_whoever_loads_a_model_has_bounded_them(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in CACHES:
        monkeypatch.delenv(name, raising=False)
    load(resolve(str(tiny_base)))
    assert [os.environ[name] for name in CACHES] == [str(KERNELS)] * 2


def test_what_the_environment_says_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHES[0], "7")
    monkeypatch.delenv(CACHES[1], raising=False)
    keep_few_kernels()
    assert [os.environ[name] for name in CACHES] == ["7", str(KERNELS)]
