"""Which checkpoints stay, and whether the disk can take another.

Kept are the newest two (the second is what a damaged newest falls back to), the best so far, and
what the user pinned; the rest goes, once the newer one has been read back from the disk.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from timechat.errors import CheckpointError, RunError
from timechat.manifest import checkpoints, read_manifest, step_of
from timechat.model.machine import free_disk
from timechat.store.files import read_json, write_json
from timechat.store.folders import remove_folder, size_of

KEPT = 2
# Beside what a save needs: room for logs, and for file systems that count in blocks.
SPARE_BYTES = 16 << 20
PINS = "pinned.json"


def pinned(run: Path) -> list[int]:
    """The steps whose checkpoints the user keeps."""
    return [int(step) for step in read_json(run / PINS)] if (run / PINS).is_file() else []


def pin(run: Path, step: int, keep: bool) -> None:
    """Keep a checkpoint whatever comes, or leave it to the rule again."""
    steps = {*pinned(run), step} if keep else set(pinned(run)) - {step}
    write_json(run / PINS, sorted(steps))


def retain(run: Path, also: Iterable[int]) -> list[Path]:
    """Delete what neither the rule nor `also` nor a pin keeps; returns what was deleted."""
    found = list(checkpoints(run))
    planned = [p for p in found if _about(p).get("planned")][:KEPT]
    keep = {*planned, *found[:1]}
    steps = {*also, *pinned(run)}
    gone = [p for p in found if p not in keep and step_of(p) not in steps]
    for folder in gone:
        remove_folder(folder)
    return gone


def newest_planned(run: Path, before: int) -> Path | None:
    """The newest checkpoint at a step where every run of this recipe has one, before `before`.

    One that a signal caused may be newer; going back to it would make two runs differ.
    """
    planned = [p for p in checkpoints(run) if _about(p).get("planned")]
    return next((p for p in planned if step_of(p) < before), planned[-1] if planned else None)


def checkpoint_bytes(run: Path) -> int:
    """The size of the run's newest checkpoint, 0 when it has none."""
    return next((size_of(folder) for folder in checkpoints(run)), 0)


def check_space(run: Path, need: int, what: str) -> None:
    """Raise RunError, with both numbers, when the disk has not room for `need` bytes more."""
    free = free_disk(run)
    if free < need + SPARE_BYTES:
        raise RunError(
            f"{what} needs {need / 1e6:,.0f} MB and {free / 1e6:,.0f} MB are free at {run}: free "
            f"some space, then `timechat resume {run}`"
        )


def point(run: Path, name: str, target: Path) -> None:
    """Make `run`/`name` a link to `target`, in one step."""
    fresh = run / f".{name}"
    fresh.unlink(missing_ok=True)
    os.symlink(target.relative_to(run), fresh)
    os.replace(fresh, run / name)


def _about(folder: Path) -> dict[str, Any]:
    try:
        return read_manifest(folder)
    except CheckpointError:
        return {}
