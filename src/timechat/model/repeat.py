"""Kernels that give the same bytes each time, on request.

On a CPU ours do without being asked (`tests/faults`). On CUDA some add up in whatever order threads
finish; torch has slower ones that do not, or refuses by name the operation that has none.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager

import torch

# What cuBLAS asks for before its first product: a workspace of its own for each stream.
_WORKSPACE = ("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@contextmanager
def repeatable(wanted: bool) -> Generator[None]:
    """Let only kernels run that repeat to the bit, where `wanted`; afterwards as before.

    Inside, torch raises RuntimeError where an operation has no such kernel on its device.
    """
    if not wanted:
        yield
        return
    os.environ.setdefault(*_WORKSPACE)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
