"""A run elsewhere: another path, another user, another time; what it was made of is found again."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import KILL_BEFORE, Zygote, proof, write_recipe
from test_disk import errors_of
from test_record import place as place

from timechat.recipe_file import load_recipe
from timechat.stages.preparing.prepare import prepare
from timechat.store.files import read_json, read_lines

# Left to `make test-faults`.
LATER = (pytest.mark.slow, pytest.mark.faults)
NOBODY = 65534
YEARS = 10 * 365 * 86_400
Finish = Callable[[Path], dict[str, Any]]


def edit(recipe: Path, **sections: Any) -> None:
    content = json.loads(recipe.read_text())
    for name, value in sections.items():
        content[name] = {**content[name], **value} if isinstance(value, dict) else value
    recipe.write_text(json.dumps(content))


def test_a_recipe_that_names_base_and_rows_where_they_lie_now_goes_on(
    zygote: Zygote, place: Path, uninterrupted: Any
) -> None:
    out = place / "run"
    (place / "models").mkdir()
    shutil.move(place / "base", place / "models" / "tiny")
    shutil.move(place / "rows.jsonl", place / "models" / "colours.jsonl")
    rows = str(place / "models" / "colours.jsonl")
    edit(place / "tiny.yaml", base=str(place / "models" / "tiny"), data={"train": [rows]})
    assert zygote.run(out, place / "tiny.yaml") == 0, errors_of(out)
    assert proof(out) == uninterrupted
    moved = [event for event in read_lines(out / "history.jsonl") if event["event"] == "moved"]
    assert [key.split(":")[0] for key in moved[0]["keys"]] == ["base", "data.train"]
    # From now on the run knows by itself.
    assert load_recipe(out / "recipe.yaml").base == str(place / "models" / "tiny")


@pytest.mark.slow
@pytest.mark.faults
def test_a_base_of_that_name_with_other_weights_is_not_the_base(
    zygote: Zygote, place: Path
) -> None:
    from conftest import build_model

    out, other = place / "run", place / "other" / "base"
    shutil.copytree(place / "base", other)
    build_model(seed=1, hidden_size=16, intermediate_size=16, num_hidden_layers=1).save_pretrained(
        other
    )
    edit(place / "tiny.yaml", base=str(other))
    assert zygote.run(out, place / "tiny.yaml") == 2
    assert "holds a run of another base" in errors_of(out)[-1]
    assert errors_of(out)[-1].endswith("or say --allow base")


@pytest.mark.slow
@pytest.mark.faults
def test_how_rows_are_split_is_data_too(zygote: Zygote, place: Path) -> None:
    """The run's own rows would otherwise be used as if nothing had been said."""
    out = place / "run"
    before = read_json(out / "data" / "card.json")["digest"]
    edit(place / "tiny.yaml", data={"seed": 5})
    assert zygote.run(out, place / "tiny.yaml") == 2
    assert "data.seed: 0 is now 5" in errors_of(out)[-1]
    assert "--allow data" in errors_of(out)[-1]
    assert zygote.run(out, place / "tiny.yaml", allow=("data",)) == 0, errors_of(out)
    assert read_json(out / "data" / "card.json")["digest"] != before


@pytest.mark.slow
@pytest.mark.faults
def test_a_changed_file_in_a_folder_of_rows_is_named(zygote: Zygote, tmp_path: Path) -> None:
    recipe, out = write_recipe(tmp_path), tmp_path / "run"
    rows = tmp_path / "rows" / "colours.jsonl"
    rows.parent.mkdir()
    shutil.move(tmp_path / "rows.jsonl", rows)
    edit(recipe, data={"train": [str(rows.parent)]})
    assert zygote.run(out, recipe) == 0, errors_of(out)
    rows.write_text(rows.read_text().replace("red", "mauve"))
    assert zygote.run(out, recipe) == 2
    assert f"the data changed: {rows}" in errors_of(out)[-1]


@pytest.mark.slow
@pytest.mark.faults
def test_prepared_rows_that_moved_with_the_run_are_found_or_named(
    breaking: Zygote, tmp_path: Path
) -> None:
    here = tmp_path / "here"
    recipe = write_recipe(here)
    prepare(load_recipe(recipe).data, here / "ready", lambda _: None)
    edit(recipe, data={"train": [], "prepared": str(here / "ready")})
    whole, out = here / "whole", here / "run"
    assert breaking.run(whole, recipe) == 0, errors_of(whole)
    assert breaking.run(out, recipe, (str(out / "checkpoints"), KILL_BEFORE, 200, 0)) == -9
    there = here.rename(tmp_path / "there")
    out = there / "run"
    assert breaking.run(out, out / "recipe.yaml") == 0, errors_of(out)
    assert proof(out) == proof(there / "whole")
    shutil.rmtree(there / "ready")
    assert breaking.run(out, out / "recipe.yaml") == 2
    assert f"the rows of {out} are not at {here / 'ready'} any more" in errors_of(out)[-1]


@pytest.mark.parametrize("looks", [0, pytest.param(1, marks=LATER)])
def test_a_clock_set_back_by_ten_years_changes_no_bit(
    breaking: Zygote, place: Path, uninterrupted: Any, looks: int
) -> None:
    """From the beginning of what is continued, or between its beginning and its end."""
    out = place / "run"
    status = breaking.run(out, place / "tiny.yaml", learn=False, clock=(YEARS, looks))
    assert status == 0, errors_of(out)
    assert proof(out) == uninterrupted
    times = [event["time"] for event in read_lines(out / "history.jsonl")]
    assert times != sorted(times), "the clock was not set back"


@pytest.fixture
def open_place(place: Path) -> Iterator[Path]:
    """A run with its base in a folder that every user may read."""
    if os.geteuid() != 0:
        pytest.skip("needs the right to become another user")
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield Path(shutil.move(place, folder / "there"))
    shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.faults
def test_a_run_moved_to_another_user_ends_in_the_same_bytes(
    zygote: Zygote, recipe: Path, open_place: Path, uninterrupted: Any
) -> None:
    out = open_place / "run"
    for path in (open_place, *open_place.rglob("*")):
        os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    assert zygote.run(out, out / "recipe.yaml", user=(NOBODY, str(recipe))) == 0, errors_of(out)[
        -9:
    ]
    assert proof(out) == uninterrupted
    last = sorted((out / "checkpoints").glob("step-*"))[-1]
    assert last.stat().st_uid == NOBODY


@pytest.mark.slow
@pytest.mark.faults
def test_another_user_s_run_is_one_error_and_stays_as_it_is(
    zygote: Zygote, recipe: Path, open_place: Path, uninterrupted: Any
) -> None:
    out = open_place / "run"
    assert zygote.run(out, out / "recipe.yaml", user=(NOBODY, str(recipe))) == 2
    assert "Permission denied" in errors_of(out)[-1]
    assert "Traceback" not in "\n".join(errors_of(out))
    assert zygote.run(out, out / "recipe.yaml") == 0, errors_of(out)
    assert proof(out) == uninterrupted
