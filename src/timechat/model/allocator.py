"""Where memory is short, large pieces of it go back to the system as soon as they are free.

glibc keeps free pieces of up to 32 MB for the next one of their kind, and small lasting pieces
between them keep them from going back: 0.6 GiB of 3.2 on six layers of a 7B model beside codes,
more with more layers. Handed back each time, they cost about a fiftieth of such a step (LAB.md).
"""

from __future__ import annotations

import ctypes

# glibc's M_MMAP_THRESHOLD (mallopt(3)): from this size on a piece has pages of its own.
_MMAP_THRESHOLD = -3
LARGE = 8 * 2**20


def hand_back_large_pieces() -> bool:
    """Have this process hand back free pieces of `LARGE` bytes or more; False where the C library
    cannot be told."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_MMAP_THRESHOLD, LARGE))
