"""What a model folder is, in one SHA-256, and where it is when it has moved."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from os.path import isfile
from pathlib import Path

from timechat.model.starter import cache_folder
from timechat.store.files import sha256, write_text


def digest_folder(folder: Path) -> str:
    """One SHA-256 over names and contents of the files that make the model what it is.

    Remembered in the cache under sizes and times, so that a large model is read once.
    """
    names = sorted(
        p.name
        for p in folder.iterdir()
        if p.suffix in (".safetensors", ".json", ".jinja", ".model")
    )
    stamp = json.dumps(
        [[n, (folder / n).stat().st_size, (folder / n).stat().st_mtime_ns] for n in names]
    )
    key = hashlib.sha256(f"{folder.resolve()}{stamp}".encode()).hexdigest()
    remembered = cache_folder() / "digests" / key
    with suppress(OSError):  # not there, or not for this user
        if len(known := remembered.read_text()) == 64:
            return known
    total = hashlib.sha256()
    for name in names:
        total.update(f"{name}:{sha256(folder / name)}\n".encode())
    with suppress(OSError):  # a read-only cache only costs time
        write_text(remembered, total.hexdigest())
    return total.hexdigest()


def find_moved(name: str, digest: str, near: Path) -> Path | None:
    """The folder called `name` with that digest: in the folders above `near`, the working folder
    or the cache."""
    places = [*near.resolve().parents, Path.cwd(), cache_folder() / "models"]
    for place in places:
        folder = place / name
        if isfile(folder / "config.json") and digest_folder(folder) == digest:
            return folder
    return None
