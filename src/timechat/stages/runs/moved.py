"""What a run was begun with, wherever it lies now: base and rows are known again by their digests.

Where they were is written in the run, and so is what they were; a folder of the same name with the
same digest, beside the run or above it, is the same thing. Where they were may lie where this user
must not even look (a Path raises there, os.path says no).
"""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from os.path import isdir, isfile
from pathlib import Path
from typing import Any

from timechat.data.sources import open_sources
from timechat.errors import DataError, ModelError
from timechat.model.digest import digest_folder, find_moved
from timechat.model.load import resolve
from timechat.recipe import Recipe
from timechat.stages.preparing.prepare import Prepared, load_prepared, open_files
from timechat.store.files import read_json, sha256

ENVIRONMENT = "environment.json"


def find_base(recipe: Recipe, out: Path) -> str:
    """The recipe's base, or the folder that it has moved to. Raises ModelError."""
    base = Path(recipe.base)
    if not base.is_absolute() or isdir(base) or not (out / ENVIRONMENT).is_file():
        return recipe.base
    digest = str(read_json(out / ENVIRONMENT)["base"]["digest"])
    found = find_moved(base.name, digest, out)
    if found is None:
        raise ModelError(
            f"the base of {out} is not at {base} any more (SHA-256 {digest[:12]}…): put it back, "
            f"or put the folder {base.name} beside the run"
        )
    return str(found)


def find_rows(folder: Path, out: Path) -> Prepared:
    """The prepared folder that the recipe refers to, or where it has moved to. Raises DataError."""
    digest = _rows_digest(out)
    if isdir(folder) or not digest:
        return load_prepared(folder)
    for place in (*out.resolve().parents, Path.cwd()):
        with suppress(DataError):
            if (found := load_prepared(place / folder.name)).card.digest == digest:
                return found
    raise DataError(
        f"the rows of {out} are not at {folder} any more (SHA-256 {digest[:12]}…): put them back, "
        f"or put the folder {folder.name} beside the run"
    )


def is_same_base(recipe: Recipe, out: Path) -> bool:
    """Whether the recipe's base, wherever it lies now, is what the run was begun with."""
    if not (out / ENVIRONMENT).is_file():
        return False
    digest = read_json(out / ENVIRONMENT)["base"]["digest"]
    return digest_folder(resolve(recipe.base).folder) == digest


def is_same_rows(recipe: Recipe, out: Path) -> bool:
    """Whether the recipe's files, wherever they lie now, are those that the run was made of."""
    if recipe.data.prepared:
        with suppress(DataError):
            return load_prepared(Path(recipe.data.prepared)).card.digest == _rows_digest(out)
        return False
    known = _known_sources(out)
    with suppress(DataError):
        found = open_files(recipe.data)
        now = [(name, sha256(source.path)) for name, files in found.items() for source in files]
        return bool(known) and Counter(now) == Counter(known)
    return False


def changed_files(recipe: Recipe, out: Path) -> list[str]:
    """The recipe's files that are not what the run was prepared from.

    A file that is gone does no harm: the run holds its own rows.
    """
    known = {digest for _, digest in _known_sources(out)}
    if not known:
        return []
    named = [Path(p) for p in (*recipe.data.train, *recipe.data.validation, *recipe.data.test)]
    files = [path for path in named if isfile(path)]
    for folder in filter(isdir, named):
        files += [source.path for source in open_sources((str(folder),), recipe.data)]
    return [str(path) for path in dict.fromkeys(files) if sha256(path) not in known]


def _known_sources(out: Path) -> list[tuple[str, str]]:
    """The split and the SHA-256 of each file that the run was prepared from."""
    card = out / "data" / "card.json"
    sources: Any = read_json(card)["sources"] if card.is_file() else {}
    return [(source["split"], source["sha256"]) for source in sources.values()]


def _rows_digest(out: Path) -> str:
    """The digest of the prepared folder that the run refers to; empty when it refers to none."""
    reference = out / "data" / "prepared.json"
    found: Any = read_json(reference) if reference.is_file() else {}
    return str(found.get("digest", ""))
