"""In which number format a model computes on this machine: measured, not read off its flags.

A CPU may have bf16 instructions and be slower with them: where AMX is switched off, as in many
virtual machines, Intel's cores multiply bf16 at half the rate of fp32. So both are tried once, and
the outcome is remembered in the user's cache: a run is several processes, which must agree.
"""

from __future__ import annotations

import json
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch

from timechat.model.kernels import keep_few_kernels
from timechat.model.machine import cpu_name, matrix_rates, total_memory
from timechat.model.starter import cache_folder
from timechat.store.files import write_json

# Of the machine's memory, what the weights may take in the wider format for the sake of its speed.
WIDE_SHARE = 0.25


def pick_dtype(num_weights: int) -> torch.dtype:
    """What a model of `num_weights` computes in: bf16 on a GPU, and on a CPU that has it, unless
    fp32 is faster there and the model small enough for it."""
    if torch.cuda.is_available() or has_fast_bf16():
        return torch.bfloat16
    is_small = 4 * num_weights <= WIDE_SHARE * total_memory()
    return torch.bfloat16 if has_bf16() and not is_small else torch.float32


def has_bf16() -> bool:
    """Whether this CPU multiplies bf16 natively (AVX512-BF16 or AMX)."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) and any(
        flag in _cpu_flags() for flag in ("avx512_bf16", "amx_bf16")
    )


@cache
def has_fast_bf16() -> bool:
    """Whether this CPU multiplies bf16 natively, and faster than fp32."""
    return has_bf16() and bf16_over_fp32() > 1.0


def bf16_over_fp32() -> float:
    """The rate of bf16 products over that of fp32 ones, as it was measured here first."""
    about = {"cpu": cpu_name(), "torch": torch.__version__}
    file = remembered()
    with suppress(OSError, ValueError, KeyError, TypeError):  # not there, or not what was left
        known: Any = json.loads(file.read_bytes())
        if known["about"] == about and known["bf16_over_fp32"] > 0:
            return float(known["bf16_over_fp32"])
    keep_few_kernels()
    narrow, wide = matrix_rates((torch.bfloat16, torch.float32))
    with suppress(OSError):  # a read-only cache only costs time
        write_json(file, {"about": about, "bf16_over_fp32": round(narrow / wide, 3)})
    return narrow / wide


def remembered() -> Path:
    """Where the outcome is kept; deleting it has it measured anew."""
    return cache_folder() / "number-format.json"


def _cpu_flags() -> set[str]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return set()
    line = next((row for row in text.splitlines() if row.startswith("flags")), "")
    return set(line.partition(":")[2].split())
