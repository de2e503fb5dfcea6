"""The manifest of a checkpoint: what is in the folder, to the byte, and where it came from.

A checkpoint exists when its manifest verifies. The manifest is the last file written into it and
holds the digest of its own text, so that a flipped bit anywhere is found and named. What the files
mean, and which checkpoint is wanted, is for others.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from timechat.errors import CheckpointError, ModelError
from timechat.guard import check_entry, read_config
from timechat.store.files import sha256, write_text
from timechat.store.folders import sync_tree

MANIFEST = "manifest.json"
# Of a manifest: its version, how to tell a newer one from this.
FORMAT = 2
CHECKPOINT = re.compile(r"step-(\d{6,})$")
_BLANK = "0" * 64


def write_manifest(folder: Path, content: Mapping[str, Any]) -> None:
    """Name every file of `folder` with its size and SHA-256, durably, after the files are."""
    sync_tree(folder)
    files = {name: _measure(folder / name) for name in _names(folder)}
    whole = {"format": FORMAT, **content, "files": files, "sha256": _BLANK}
    text = json.dumps(whole, indent=2) + "\n"
    digest = hashlib.sha256(text.encode()).hexdigest()
    write_text(folder / MANIFEST, _swap(text, _BLANK, digest))


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of `folder`, when it is whole. Raises CheckpointError."""
    path = folder / MANIFEST
    if not path.is_file():
        raise CheckpointError(f"{folder} is no checkpoint: it has no {MANIFEST}")
    try:
        found = read_config(path)
    except ModelError as error:
        raise CheckpointError(f"{folder} is damaged: {error}") from None
    digest = str(found.get("sha256"))
    blanked = _swap(path.read_text(encoding="utf-8"), digest, _BLANK)
    if hashlib.sha256(blanked.encode()).hexdigest() != digest:
        raise CheckpointError(f"{folder} is damaged: {MANIFEST} is not what was saved")
    if found.get("format") != FORMAT:
        raise CheckpointError(
            f"{folder} was written by another version of timechat: its manifest has format "
            f"{found.get('format')!r}, this version reads {FORMAT}"
        )
    return found


def verify(folder: Path, only_model: bool = False) -> dict[str, Any]:
    """The manifest, when the folder holds the files it names and no others, each as it was saved.

    `only_model` compares what only training reads by its size alone. Raises CheckpointError naming
    the first file that is wrong.
    """
    manifest = read_manifest(folder)
    wanted = manifest["files"]
    for name in sorted({*wanted, *_names(folder)}):
        if name not in wanted:
            raise CheckpointError(f"{folder} is damaged: {name} was not saved with it")
        _check_file(folder, name, wanted[name], not (only_model and name.startswith("state/")))
    return manifest


def checkpoints(run: Path) -> Iterator[Path]:
    """The folders of a run's checkpoints, the newest first; whether they are whole is not asked."""
    found = [p for p in (run / "checkpoints").glob("step-*") if CHECKPOINT.match(p.name)]
    yield from sorted(found, key=step_of, reverse=True)


def step_of(folder: Path) -> int:
    match = CHECKPOINT.match(folder.name)
    assert match is not None, folder
    return int(match[1])


def newest(run: Path, say: Callable[[str], None] = lambda _: None) -> Path | None:
    """The newest checkpoint of a run that verifies; damaged ones are set aside by name, aloud."""
    for folder in checkpoints(run):
        try:
            verify(folder)
        except CheckpointError as error:
            say(f"{error}; {set_aside(folder)}")
        else:
            return folder
    return None


def set_aside(folder: Path) -> str:
    """Rename a damaged checkpoint, so that nothing takes it for a good one; says what was done."""
    aside = folder.with_name(f"damaged-{folder.name}")
    number = 1
    while aside.exists():
        number += 1
        aside = folder.with_name(f"damaged-{folder.name}-{number}")
    try:
        os.rename(folder, aside)
    except OSError as error:
        return f"left out (it could not be set aside: {error.strerror})"
    return f"set aside as {aside.name}"


def _names(folder: Path) -> list[str]:
    """Every file below `folder` but the manifest, by its path from there; links are refused."""
    names: list[str] = []
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            raise CheckpointError(f"{folder} is damaged: {path.name} is a link; none is ever saved")
        if path.is_file() and not path.name.startswith(".") and path != folder / MANIFEST:
            names.append(path.relative_to(folder).as_posix())
    return names


def _swap(text: str, old: str, new: str) -> str:
    """`text` with the last `old` in it replaced."""
    before, found, after = text.rpartition(old)
    return before + new + after if found else text


def _measure(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}


def _check_file(folder: Path, name: str, want: Mapping[str, Any], deep: bool) -> None:
    path = folder / name
    parts = PurePosixPath(name)
    if parts.is_absolute() or ".." in parts.parts:
        raise CheckpointError(f"{folder} is damaged: {MANIFEST} names {name!r}, outside of it")
    if not path.is_file():
        raise CheckpointError(f"{folder} is damaged: {name} is missing")
    check_entry(path, folder)
    found = path.stat().st_size
    if found != want["bytes"]:
        raise CheckpointError(
            f"{folder} is damaged: {name} has {found:,} bytes, {want['bytes']:,} were saved"
        )
    if deep and sha256(path) != want["sha256"]:
        raise CheckpointError(f"{folder} is damaged: {name} is not what was saved")
