"""The recipe: what may be written, and what is said about the rest."""

from pathlib import Path

import pytest
import yaml

from timechat.errors import RecipeError
from timechat.recipe import Recipe, parse_recipe
from timechat.recipe_file import dump_recipe, load_recipe


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_an_empty_recipe_is_the_default_one(tmp_path: Path) -> None:
    assert load_recipe(write(tmp_path, "")) == Recipe()


def test_overrides_go_on_top_and_numbers_are_numbers(tmp_path: Path) -> None:
    path = write(tmp_path, "train:\n  epochs: 2\n")
    recipe = load_recipe(
        path, ["train.epochs=3", "train.learning_rate=1e-3", "adapt.rank=8", "data.system=Be kind."]
    )
    assert (recipe.train.epochs, recipe.train.learning_rate) == (3, 1e-3)
    assert (recipe.adapt.rank, recipe.data.system) == (8, "Be kind.")


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ({"trian": {}}, "did you mean 'train'"),
        ({"train": {"epoch": 1}}, "did you mean 'epochs'"),
        ({"data": {"files": []}}, "known: "),
        ({"train": {"epochs": -1}}, "train.epochs"),
        ({"adapt": {"rank": 0}}, "adapt.rank"),
        ({"data": {"max_dropped": 2}}, "data.max_dropped"),
    ],
)
def test_what_is_unknown_or_out_of_range_is_refused_by_name(
    raw: dict[str, object], said: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(raw)
    assert said in str(caught.value)


def test_a_dumped_recipe_is_read_back_equal(tmp_path: Path) -> None:
    recipe = parse_recipe(
        {"data": {"columns": {"user": "ça"}, "max_dropped": 0.2}, "train": {"epochs": 1.5}}
    )
    assert load_recipe(write(tmp_path, dump_recipe(recipe))) == recipe
    assert parse_recipe(yaml.safe_load(dump_recipe(recipe))) == recipe


def test_data_paths_are_taken_beside_the_recipe_first(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("x")
    recipe = load_recipe(write(tmp_path, "data:\n  train: [rows.jsonl]\n  test: [none.jsonl]\n"))
    assert recipe.data.train == (str((tmp_path / "rows.jsonl").resolve()),)
    assert recipe.data.test == (str(Path("none.jsonl").resolve()),)


@pytest.mark.parametrize("text", ["- a\n", "a: [\n", "hello"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(RecipeError):
        load_recipe(write(tmp_path, text))


def test_a_missing_recipe_and_bad_overrides_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no recipe at"):
        load_recipe(tmp_path / "none.yaml")
    path = write(tmp_path, "base: starter\n")
    for text in ("train.epochs", "=3", "base.name=3"):
        with pytest.raises(RecipeError):
            load_recipe(path, [text])


def test_a_recipe_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Recipe().base = "other"  # type: ignore[misc]


RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_ready_recipe_parses_and_names_files_that_exist(path: Path) -> None:
    recipe = load_recipe(path)
    files = (*recipe.data.train, *recipe.data.validation, *recipe.data.test)
    assert files
    assert all(Path(name).is_file() for name in files)


def test_the_recipe_with_every_option_has_them_all_at_their_defaults() -> None:
    path = next(path for path in RECIPES if path.stem == "every-option")
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    raw["data"]["train"] = []
    assert raw == Recipe().model_dump(mode="json")
