"""The run as a record: whose recipe, data and base it is, and what was allowed to change.

`environment.json` holds what the run was begun with. Going on with anything else is refused,
naming it, unless it was allowed by name; what was allowed is remembered, so that older checkpoints
of the run are still its own.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from timechat.errors import DataError, RecipeError, RunError
from timechat.recipe import Recipe, parse_recipe
from timechat.recipe_file import dump_recipe, load_recipe
from timechat.stages.runs.moved import ENVIRONMENT, changed_files, is_same_base, is_same_rows
from timechat.stages.watch import Watcher
from timechat.store.files import append_line, read_json, write_json, write_text

CHANGES = ("recipe", "data", "base")
HISTORY = "history.jsonl"
RECIPE = "recipe.yaml"
# The keys of a recipe that say where rows lie, as `differences` tells them.
ROWS = ("data.train: ", "data.validation: ", "data.test: ", "data.prepared: ")
# What depends on recipe, data or base, and is made anew when one of them may change.
DERIVED = ("plan.json", "checks.json", "too_long.jsonl", "evals/before", ENVIRONMENT)


@dataclass(frozen=True, slots=True)
class Record:
    """The fingerprints of a run, those that were allowed to be replaced, and who computes."""

    fingerprints: dict[str, str]
    former: dict[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    made_by: dict[str, str] = field(default_factory=dict[str, str])


def note(run: Path, event: str, **details: Any) -> None:
    """Add a line to the run's history."""
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    append_line(run / HISTORY, {"time": when, "event": event, **details})


def make_room(out: Path) -> None:
    """A folder for a run at `out`. Raises RunError when something else is there."""
    if out.exists() and not out.is_dir():
        raise RunError(f"{out} is a file: name a folder with --out")
    out.mkdir(parents=True, exist_ok=True)
    is_run = (out / RECIPE).is_file()
    if not is_run and any(not p.name.startswith(".") for p in out.iterdir()):
        raise RunError(f"{out} is not empty and holds no run: name another folder with --out")


def claim(recipe: Recipe, out: Path, allow: Sequence[str]) -> bool:
    """Make `out` this recipe's run, or see that it already is; returns whether it is new."""
    unknown = sorted(set(allow) - set(CHANGES))
    if unknown:
        raise RecipeError(f"--allow {unknown[0]}: one of {', '.join(CHANGES)}")
    if (out / RECIPE).is_file():
        _check_recipe(recipe, out, allow)
        _check_rows(recipe, out, allow)
        return False
    write_text(out / RECIPE, dump_recipe(recipe))
    return True


def settle(
    recipe: Recipe,
    out: Path,
    now: dict[str, Any],
    data: str,
    allow: Sequence[str],
    watcher: Watcher,
) -> Record:
    """Compare what the run was begun with to what there is `now`, and write it where it is new.

    Raises RunError, naming it, when data or base changed and that was not allowed.
    """
    prints = {"base": now["base"]["digest"], "data": data, "recipe": recipe_print(recipe)}
    path = out / ENVIRONMENT
    former: dict[str, tuple[str, ...]] = {}
    if path.is_file() and "fingerprints" in (then := read_json(path)):
        former = {name: tuple(old) for name, old in then["former"].items()}
        for name, old in then["fingerprints"].items():
            if old == prints[name]:
                continue
            if name not in allow:
                raise RunError(_refusal(out, name, old, prints[name], then, now))
            former[name] = (*former.get(name, ()), old)
            note(out, "changed", what=name, was=old, now=prints[name])
            watcher.say(f"the {name} changed, as allowed")
            _forget(out)
        _keep_threads(int(then["threads"]), watcher)
        _note_libraries(out, then, now, watcher)
    if not path.is_file():
        whole = {**now, "threads": torch.get_num_threads(), "fingerprints": prints}
        write_json(path, {**whole, "former": former, "recipe": recipe.model_dump(mode="json")})
    return Record(prints, former, read_json(path)["made_by"])


def recipe_print(recipe: Recipe) -> str:
    """The digest of what a recipe says about training."""
    # What is asked of the trained model does not change how it is trained, and a key that a later
    # version adds changes nothing at its default.
    # The base has a digest of its own, wherever it lies.
    others = {"evaluate": True, "data": True, "base": True}
    text = recipe.model_dump_json(exclude=others, exclude_defaults=True)
    return hashlib.sha256(text.encode()).hexdigest()


def differences(then: Mapping[str, Any], now: Mapping[str, Any], place: str = "") -> list[str]:
    """Every key of two recipes whose values differ, as `train.epochs: 2 is now 3`."""
    found: list[str] = []
    for key in [*now, *(k for k in then if k not in now)]:
        old, new = then.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping) and key != "columns":
            found += differences(old, new, f"{place}{key}.")
        elif old != new:
            found.append(f"{place}{key}: {old!r} is now {new!r}")
    return found


def _check_recipe(recipe: Recipe, out: Path, allow: Sequence[str]) -> None:
    recorded = _recorded(out)
    changed = differences(recorded.model_dump(mode="json"), recipe.model_dump(mode="json"))
    moved = [c for c in changed if _has_moved(c, recipe, out)]
    changed = [c for c in changed if c not in moved]
    if moved and not changed:
        note(out, "moved", keys=moved)
        _rewrite_recipe(out, recipe)
    if not changed:
        return
    kinds = list(dict.fromkeys(map(_kind_of, changed)))
    refused = [kind for kind in kinds if kind not in allow]
    if refused:
        raise RunError(
            f"{out} holds a run of another {' and '.join(refused)} ({'; '.join(changed)}): name "
            f"another folder with --out, continue that one with `timechat resume {out}`, or say "
            f"{' '.join(f'--allow {kind}' for kind in refused)}"
        )
    if any(c.startswith("adapt.") for c in changed):
        raise RunError(
            f"{'; '.join(changed)}: which weights learn cannot change within a run; name another "
            "folder with --out"
        )
    note(out, "changed", what=" and ".join(kinds), keys=changed)
    if "data" in kinds:
        shutil.rmtree(out / "data", ignore_errors=True)
    was = recipe_print(recorded)
    if (out / ENVIRONMENT).is_file():
        then = read_json(out / ENVIRONMENT)
        then["former"] = {**then["former"], "recipe": [*then["former"].get("recipe", []), was]}
        then["fingerprints"]["recipe"] = recipe_print(recipe)
        write_json(out / ENVIRONMENT, then)
    _rewrite_recipe(out, recipe)
    for name in ("plan.json", "checks.json"):
        (out / name).unlink(missing_ok=True)
    shutil.rmtree(out / "evals" / "before", ignore_errors=True)


def _kind_of(change: str) -> str:
    """Which of CHANGES allows it."""
    head = change.partition(":")[0].partition(".")[0]
    return head if head in CHANGES else "recipe"


def _has_moved(change: str, recipe: Recipe, out: Path) -> bool:
    """Whether what changed is only where the same base, or the same rows, lie."""
    if change.startswith("base: "):
        return is_same_base(recipe, out)
    return change.startswith(ROWS) and is_same_rows(recipe, out)


def _rewrite_recipe(out: Path, recipe: Recipe) -> None:
    if (out / ENVIRONMENT).is_file():
        then = read_json(out / ENVIRONMENT)
        write_json(out / ENVIRONMENT, {**then, "recipe": recipe.model_dump(mode="json")})
    write_text(out / RECIPE, dump_recipe(recipe))


def _recorded(out: Path) -> Recipe:
    """The recipe that the run was begun with; the record, where somebody edited the file."""
    kept: Any = read_json(out / ENVIRONMENT) if (out / ENVIRONMENT).is_file() else {}
    return parse_recipe(kept["recipe"]) if "recipe" in kept else load_recipe(out / RECIPE)


def _check_rows(recipe: Recipe, out: Path, allow: Sequence[str]) -> None:
    """Raise DataError when a source file is not what the run was prepared from."""
    changed = changed_files(recipe, out)
    if not changed:
        return
    if "data" not in allow:
        raise DataError(
            f"the data changed: {', '.join(changed)} is not what {out} was prepared from; put it "
            "back, name another folder with --out, or say --allow data to go on with the new rows"
        )
    note(out, "changed", what="data", files=changed)
    shutil.rmtree(out / "data")


def _refusal(
    out: Path, name: str, old: str, new: str, then: Mapping[str, Any], now: Mapping[str, Any]
) -> str:
    what = f"the {name} of {out} changed"
    if name == "base":
        what = f"the base of {out} changed: {now['base']['folder']} is another model than it was"
    return (
        f"{what} (SHA-256 {old[:12]}… is now {new[:12]}…): put it back, start a new run, or say "
        f"--allow {name}"
    )


def _forget(out: Path) -> None:
    for name in DERIVED:
        path = out / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _keep_threads(threads: int, watcher: Watcher) -> None:
    """Sums are added in another order by another number of threads."""
    if threads != torch.get_num_threads():
        watcher.say(f"computing with {threads} threads, as the run began, to end in the same bytes")
        torch.set_num_threads(threads)


def _note_libraries(
    out: Path, then: Mapping[str, Any], now: Mapping[str, Any], watcher: Watcher
) -> None:
    """Say and record what else computes from here on: code, libraries, number format."""
    old, new = then["made_by"], now["made_by"]
    changed = [f"{n} {old.get(n)} is now {new[n]}" for n in new if old.get(n) != new[n]]
    if then["dtype"] != now["dtype"]:
        changed.append(f"the number format {then['dtype']} is now {now['dtype']}")
    if not changed:
        return
    watcher.say(
        f"not what the run began with: {'; '.join(changed)}. It goes on, but its last bits may "
        "differ from a run that never stopped"
    )
    note(out, "changed", what="libraries", keys=changed)
    path = out / ENVIRONMENT
    if path.is_file():  # else it is written anew, with what there is now
        kept = read_json(path)
        before = [*kept.get("made_before", []), old]
        fresh = {"made_by": new, "made_before": before, "dtype": now["dtype"]}
        write_json(path, {**kept, **fresh})
