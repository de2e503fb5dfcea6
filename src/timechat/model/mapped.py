"""Weights that lie in a mapped file: read in place, never copied, and let go of when they are done.

transformers maps safetensors files and hands out views of them, so a base in its own format takes
no memory but the pages that are looked at. Those stay resident until the kernel wants them back;
what is worked through once, as in quantising, should not wait for that.
"""

from __future__ import annotations

import ctypes
import mmap
from pathlib import Path

from torch import Tensor


def forget(tensor: Tensor) -> int:
    """Let the pages of a weight go that lies in a mapped file; returns their bytes, 0 elsewhere.

    Nothing is lost: the file is read again where the weight is. Memory that no file stands behind
    is left alone.
    """
    advice = getattr(mmap, "MADV_DONTNEED", None)
    if advice is None or tensor.is_cuda or not _is_mapped(tensor.data_ptr()):
        return 0
    # Whole pages only: the ends are shared with the neighbours.
    first = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    end = tensor.data_ptr() + tensor.numel() * tensor.element_size()
    size = end // mmap.PAGESIZE * mmap.PAGESIZE - first
    if size <= 0:
        return 0
    libc = ctypes.CDLL(None)
    done = libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(size), advice)
    return size if done == 0 else 0


def _is_mapped(address: int) -> bool:
    """Whether a file stands behind `address`; never so where the system does not tell."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return False
    for line in lines:
        # start-end rights offset device inode path
        span, _, _, _, inode, *_ = line.split()
        start, end = (int(part, 16) for part in span.split("-"))
        if start <= address < end:
            return inode != "0"
    return False
