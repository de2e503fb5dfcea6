"""What this machine can do, measured: memory, disk, and the rate of matrix products."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch


def free_memory() -> int:
    """Bytes that a process may still take: the GPU's when there is one, else the machine's."""
    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0])
    try:
        rows = dict(
            line.split(":", 1)
            for line in Path("/proc/meminfo").read_text().splitlines()
            if ":" in line
        )
        free = int(rows["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        free = _physical_memory()
    return min(free, _cgroup_limit() - _cgroup_use())


def total_memory() -> int:
    """Bytes of memory that the machine, or its container, has in all."""
    return min(_physical_memory(), _cgroup_limit())


def _physical_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def free_disk(folder: Path) -> int:
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def peak_memory() -> int:
    """The largest resident size of this process so far, in bytes."""
    try:
        # Unlike getrusage's figure, this one does not begin with that of the parent.
        rows = Path("/proc/self/status").read_text().splitlines()
        return int(next(r for r in rows if r.startswith("VmHWM")).split()[1]) * 1024
    except (OSError, StopIteration):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def machine_name() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{cpu_name()}, {torch.get_num_threads()} threads"


def cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def matrix_rate(dtype: torch.dtype, size: int = 1536) -> float:
    """Floating-point operations a second of a square matrix product, best of five."""
    (rate,) = matrix_rates((dtype,), size)
    return rate


def matrix_rates(dtypes: Sequence[torch.dtype], size: int = 1536) -> list[float]:
    """As `matrix_rate` for each of `dtypes`, which take turns: a neighbour disturbs all alike."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    operands = [torch.randn(size, size, device=device).to(dtype) for dtype in dtypes]
    best = [float("inf")] * len(dtypes)
    for _ in range(6):
        for i, a in enumerate(operands):
            started = time.perf_counter()
            (a @ a)[0, 0].item()
            best[i] = min(best[i], time.perf_counter() - started)
    return [2 * size**3 / seconds for seconds in best]


def _cgroup_limit() -> int:
    """The container's own limit, where there is one."""
    return _cgroup_figure("max", sys.maxsize)


def _cgroup_use() -> int:
    return _cgroup_figure("current", 0)


def _cgroup_figure(name: str, otherwise: int) -> int:
    try:
        text = Path(f"/sys/fs/cgroup/memory.{name}").read_text().strip()
    except OSError:
        return otherwise
    return int(text) if text.isdigit() else otherwise
