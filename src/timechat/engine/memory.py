"""What an engine's process may hold, and what it holds.

Planned is what it held when it was ready and what its keys and values may come to; what it takes
beyond the margin is a leak, and on a small machine the system would end somebody else for it. What
becomes of a process that outgrew its plan is `process`'s matter.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

# Beyond the plan: what one step needs, and what allocators keep for themselves.
MARGIN_SHARE = 0.25
MARGIN_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Held:
    """Bytes of a process in memory: its own, and pages of files that it looks at."""

    own: int
    files: int


def held_by(pid: int) -> Held | None:
    """None where the system does not say (it is not Linux, or the process is gone)."""
    try:
        rows = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    sizes = {
        name: int(rest.split()[0]) << 10
        for name, _, rest in (row.partition(":") for row in rows)
        if name.startswith("Rss")
    }
    if "RssAnon" not in sizes:  # it has ended, and nobody has looked yet
        return None
    return Held(sizes["RssAnon"] + sizes.get("RssShmem", 0), sizes.get("RssFile", 0))


def most(ready: Held, kv_bytes: int, margin_bytes: int = MARGIN_BYTES) -> int:
    """Bytes of its own that a process may come to hold. Pages of files count as planned: a runtime
    may lay weights out anew when they are first used."""
    planned = ready.own + ready.files + kv_bytes
    return int(planned * (1 + MARGIN_SHARE)) + margin_bytes
