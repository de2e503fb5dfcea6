"""`doctor`: what this machine can do, and what is missing."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from timechat.model import machine
from timechat.model.number_format import bf16_over_fp32, has_bf16, pick_dtype, remembered
from timechat.model.starter import FOLDER, cache_folder
from timechat.planning.facts import GIB
from timechat.planning.resources import STEP_EFFICIENCY
from timechat.stages.environment import PACKAGES, package_version
from timechat.stages.evaluating.cache import answers_folder

# Weights of the starter, and those of its layers alone.
STARTER_WEIGHTS, STARTER_TRUNK = 134_515_008, 106_202_880


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at: whether it is fine, what was found, and what to do where it is not."""

    name: str
    fine: bool
    found: str
    advice: str = ""


def examine() -> list[Finding]:
    dtype = pick_dtype(STARTER_WEIGHTS)
    rate = machine.matrix_rate(dtype)
    memory = machine.free_memory()
    disk = machine.free_disk(Path.cwd())
    starter = cache_folder() / "models" / FOLDER
    # A LoRA step costs about 4 operations a weight and token.
    speed = rate * STEP_EFFICIENCY / (4 * STARTER_TRUNK)
    return [
        Finding("python", sys.version_info < (3, 14), sys.version.split()[0], "use 3.11 to 3.13"),
        Finding("machine", True, machine.machine_name()),
        Finding(
            "arithmetic",
            dtype == torch.bfloat16 or has_bf16(),
            _say_arithmetic(dtype, rate),
            "no bf16 instructions: training runs in fp32, several times slower",
        ),
        Finding("starter", True, f"would train at about {speed:.0f} tokens a second"),
        Finding(
            "memory",
            memory > 3 * GIB,
            f"{memory / GIB:.1f} GiB free",
            "the starter trains in about 2 GiB: close something",
        ),
        Finding("disk", disk > 2 * GIB, f"{disk / GIB:.1f} GiB free here", "free at least 2 GiB"),
        Finding(
            "starter model",
            True,
            f"in the cache ({starter})" if starter.is_dir() else "fetched on first use (93 MB)",
        ),
        Finding(
            "cache",
            _writable(cache_folder()),
            str(cache_folder()),
            "not writable: set TIMECHAT_CACHE to a folder that is",
        ),
        Finding(
            "known answers",
            True,
            f"of {_num_known()} bases in {answers_folder()}; delete it to ask them anew",
        ),
        Finding("packages", True, ", ".join(f"{n} {package_version(n)}" for n in PACKAGES)),
    ]


def _say_arithmetic(dtype: torch.dtype, rate: float) -> str:
    found = f"{str(dtype).removeprefix('torch.')}, {rate / 1e9:.0f} GFLOP/s in matrix products"
    if dtype == torch.float32 and has_bf16():
        found += (
            f"; bf16 runs at {bf16_over_fp32():.2f} of that here, so only models too large for "
            f"fp32 compute in it (measured once, kept in {remembered()})"
        )
    return found


def _num_known() -> int:
    return len(list(answers_folder().glob("*.json")))


def _writable(folder: Path) -> bool:
    while not folder.exists():
        folder = folder.parent
    return os.access(folder, os.W_OK)
