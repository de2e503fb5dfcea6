"""Names to files: a file, a folder, a zip archive, or a dataset of the Hugging Face Hub.

A folder that comes split (train, validation, test in its names, as the Hub has it) stays split.
Links out of a folder are refused, and what is not read is named.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal

from timechat.data.files.blobs import ZIP, Blob, list_members, on_disk, open_blob
from timechat.data.files.containers import COLUMNAR, JSON, PROSE, SHEETS, TABLES, kinds
from timechat.data.files.hub import fetch, is_hub_id
from timechat.errors import DataError

PREPARED_CARD = "card.json"
ROWS = (*JSON, *TABLES, *COLUMNAR, *SHEETS)
PACKED = (".gz", ".zst")
# What `datasets` and the Hub put beside the rows.
NOT_ROWS = frozenset({"dataset_dict.json", "dataset_info.json", "state.json", "dataset_infos.json"})
# What its `map` and `filter` leave there: the same rows once more.
_CACHED = re.compile(r"cache-[0-9a-f]{8,}[\w-]*\.arrow")
MAX_FILES = 100_000
Split = Literal["train", "validation", "test"]
_SPLIT = re.compile(r"(?:^|[-_.])(train|training|validation|valid|val|dev|eval|test)(?:[-_.]|$)")
_SPLITS: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "test": "test",
    "eval": "test",
}


@dataclass(slots=True)
class Found:
    """The files behind one name. `split` maps a file's name to the split it says it is of."""

    blobs: list[Blob]
    split: dict[str, Split] = field(default_factory=dict[str, Split])
    unread: list[str] = field(default_factory=list[str])


def locate(name: str) -> Found:
    """The files that `name` stands for. Raises DataError when there is none."""
    path = Path(name)
    shown = name.encode("utf-8", "replace").decode()
    try:
        if path.is_dir():
            return _folder(shown, path)
        if not path.exists() and is_hub_id(name):
            return _folder(shown, fetch(name))
    except OSError as error:
        raise DataError(f"{shown} cannot be read: {error.strerror}") from None
    blob = Blob(shown, path)
    if blob.suffix not in SHEETS and _is_zip(blob):
        return _archive(on_disk(blob))
    return Found([blob])


def _is_zip(blob: Blob) -> bool:
    with open_blob(blob) as stream:
        return stream.read(4) == ZIP


def _folder(shown: str, root: Path) -> Found:
    if (root / PREPARED_CARD).is_file():
        raise DataError(
            f"{shown} is a prepared folder: give it as `prepared`, not as a file of rows"
        )
    allowed = [root.resolve()]
    if root.parent.name == "snapshots":
        # The Hub's cache is made of links to the files beside it.
        allowed.append((root.parent.parent / "blobs").resolve())
    names: list[str] = []
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for name in [*folders, *files]:
            _check_link(Path(folder, name), allowed, shown)
        names += [
            (Path(folder) / file).relative_to(root).as_posix()
            for file in files
            if not file.startswith(".")
        ]
        if len(names) > MAX_FILES:
            raise DataError(f"{shown} holds more than {MAX_FILES:,} files: name the ones to read")
    chosen, unread = _choose(names)
    if not chosen:
        raise DataError(f"{shown} is a folder without data files: put {kinds()} files into it")
    blobs = [
        Blob(f"{shown.rstrip('/')}/{name.encode('utf-8', 'replace').decode()}", root / name)
        for name in chosen
    ]
    return _with_splits(blobs, chosen, unread)


def _archive(blob: Blob) -> Found:
    names = [
        name
        for name in list_members(blob)
        if not any(p.startswith((".", "__MACOSX")) for p in PurePosixPath(name).parts)
    ]
    chosen, unread = _choose(names)
    if not chosen:
        raise DataError(f"{blob.name} is an archive without data files: pack {kinds()} files")
    blobs = [Blob(f"{blob.name}/{name}", blob.path, name, blob.copy) for name in chosen]
    return _with_splits(blobs, chosen, unread)


def _choose(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """The files to read, and those that are not: text only where nothing else is."""
    rows: list[str] = []
    prose: list[str] = []
    unread: list[str] = []
    for name in sorted(names):
        low = name.lower()
        for ending in PACKED:
            low = low.removesuffix(ending)
        base = PurePosixPath(name).name
        if _CACHED.fullmatch(base):
            unread.append(name)
        elif low.endswith(ROWS) and base not in NOT_ROWS:
            rows.append(name)
        elif low.endswith(PROSE):
            prose.append(name)
        elif base not in NOT_ROWS:
            unread.append(name)
    return (rows, prose + unread) if rows else (prose, unread)


def _with_splits(blobs: list[Blob], names: list[str], unread: list[str]) -> Found:
    splits: list[Split | None] = [split_of(name) for name in names]
    # Without a file of training rows the words mean something else here.
    if "train" not in splits or len(set(splits)) < 2:
        return Found(blobs, {}, unread)
    found = Found(blobs, unread=unread)
    for blob, split in zip(blobs, splits, strict=True):
        if split is not None:
            found.split[blob.name] = split
    return found


def split_of(name: str) -> Split | None:
    """The split that a file's name, or the folder it is in, says it belongs to."""
    path = PurePosixPath(name.lower())
    if path.parent.name in ("train", "validation", "valid", "val", "dev", "test"):
        return _SPLITS.get(path.parent.name, "validation")
    found = _SPLIT.search(path.name)
    return _SPLITS.get(found[1], "validation") if found else None


def _check_link(path: Path, allowed: list[Path], shown: str) -> None:
    if not path.is_symlink():
        return
    target = path.resolve()
    if not any(target.is_relative_to(root) for root in allowed):
        raise DataError(
            f"{shown}: {path.name} is a link that leads out of the folder, to {target}: "
            "name that file itself, or take the link away"
        )
