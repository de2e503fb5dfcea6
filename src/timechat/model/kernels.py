"""How many compiled matrix kernels a CPU keeps.

oneDNN compiles a kernel for each size of a bf16 product, and keeps 1,024 of them in a cache of its
own and as many in PyTorch's beside it, at up to a megabyte each. Packed rows have ever new sizes,
so both fill up with kernels that never come back: two gigabytes on three hundred steps, and slower
products (LAB.md). A step has fewer than a hundred sizes, which must fit.
"""

from __future__ import annotations

import os

KERNELS = 160
# Both are read at the first product.
_CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")


def keep_few_kernels() -> None:
    """Bound both caches, unless the environment does; to be called before the first product."""
    for name in _CACHES:
        os.environ.setdefault(name, str(KERNELS))
