"""A recipe as a YAML file: read with `section.key=value` on top, its paths placed, and written.

What may stand in it is `recipe`'s.
"""

from __future__ import annotations

from collections.abc import Iterable
from os.path import exists, isdir
from pathlib import Path
from typing import Any

import yaml

from timechat.errors import RecipeError
from timechat.recipe import Data, Evaluate, Recipe, parse_recipe


def load_recipe(path: Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read the recipe at `path` with `section.key=value` overrides on top.

    Data paths and a base that is a folder are taken relative to the recipe's folder, or else to
    the working folder.
    Raises RecipeError for a missing file, bad YAML, an unknown key or a value out of range.
    """
    if not path.is_file():
        raise RecipeError(f"no recipe at {path}: give the path of a YAML file")
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not readable YAML: {error}") from None
    if raw is None:
        raw = {}
    if not isinstance(raw, dict):
        raise RecipeError(f"{path} holds a {type(raw).__name__}; a recipe is a mapping of sections")
    for text in overrides:
        apply_override(raw, text)
    recipe = parse_recipe(raw, where=str(path))
    update = {
        "data": _resolve(recipe.data, path.parent),
        "base": _place_base(recipe.base, path),
        "evaluate": _place_retention(recipe.evaluate, path.parent),
    }
    return recipe.model_copy(update=update)


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML that `load_recipe` reads back to an equal one."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def apply_override(raw: dict[str, Any], text: str) -> None:
    """Put `section.key=value` into a raw recipe. Raises RecipeError."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise RecipeError(f"{text!r} is not section.key=value, for example train.epochs=3")
    *sections, name = key.split(".")
    place = raw
    for section in sections:
        inner = place.setdefault(section, {})
        if not isinstance(inner, dict):
            raise RecipeError(f"{text!r}: {section!r} is a value, not a section")
        place = inner
    place[name] = _scalar(value)


def _scalar(text: str) -> Any:
    """YAML's reading of `text`; a sentence that YAML would read as a mapping stays a sentence."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    if isinstance(value, dict) and not text.lstrip().startswith("{"):
        return text
    return value


def _place_base(base: str, recipe: Path) -> str:
    """A base that is a folder by its whole path; a name stays a name."""
    if base == "starter" or base.startswith("~"):
        return base
    places = (recipe.parent / base, Path(base))
    return next((str(place.resolve()) for place in places if isdir(place)), base)


def _place(name: str, folder: Path) -> str:
    beside = folder / name
    # os.path, not Path: a place where this user must not look is no error, but not there.
    return str(beside.resolve() if exists(beside) else Path(name).resolve())


def _place_retention(evaluate: Evaluate, folder: Path) -> Evaluate:
    placed = tuple(_place(name, folder) for name in evaluate.retention)
    return evaluate.model_copy(update={"retention": placed})


def _resolve(data: Data, folder: Path) -> Data:
    def place(name: str) -> str:
        return _place(name, folder)

    return data.model_copy(
        update={
            "train": tuple(map(place, data.train)),
            "validation": tuple(map(place, data.validation)),
            "test": tuple(map(place, data.test)),
            "prepared": place(data.prepared) if data.prepared else None,
        }
    )
