"""What this machine can do, measured: memory, disk, and the rate of matrix products."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import sys
import time
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
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(free, _cgroup_limit())


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
    model = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    return f"{model}, {torch.get_num_threads()} threads"


def matrix_rate(dtype: torch.dtype, size: int = 1536) -> float:
    """Floating-point operations a second of a square matrix product, best of five."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    a = torch.randn(size, size, device=device).to(dtype)
    best = float("inf")
    for _ in range(6):
        started = time.perf_counter()
        (a @ a)[0, 0].item()
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def _cgroup_limit() -> int:
    """The container's own limit, where there is one."""
    try:
        text = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
    except (OSError, ValueError):
        return sys.maxsize
    return int(text) - used if text.isdigit() else sys.maxsize
