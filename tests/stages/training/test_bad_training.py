"""What cannot be trained is refused before anything is left behind; what only looks odd is trained.

Rows and numbers that go wrong later are in `tests/faults/test_record.py` and `test_explosion.py`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import CHATML, build_model, build_tokenizer
from test_train import make_recipe
from transformers import PreTrainedTokenizerFast

from timechat.errors import DataError, ModelError
from timechat.recipe import Full, Recipe
from timechat.stages.training.train import train
from timechat.store.files import read_lines

pytestmark = pytest.mark.usefixtures("small_suite")


def recipe_of(
    folder: Path, tokenizer: PreTrainedTokenizerFast | None = None, **model: Any
) -> Recipe:
    """A recipe for a base of its own."""
    build_model(**model).save_pretrained(folder / "base")
    (tokenizer or build_tokenizer()).save_pretrained(folder / "base")
    return make_recipe(folder, epochs=1, validations=1)


def silence(recipe: Recipe, every: int) -> None:
    """Give the answers of every so many rows no weight."""
    path = Path(recipe.data.train[0])
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows[::every]:
        row["messages"][-1]["weight"] = 0
    path.write_text("\n".join(map(json.dumps, rows)))


def refused(recipe: Recipe, folder: Path, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        train(recipe, folder / "run")
    assert not (folder / "run").exists()


def test_rows_without_a_trained_token_are_dropped_with_line_and_reason(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path)
    silence(recipe, every=8)
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"max_dropped": 0.2})})
    run = train(recipe, tmp_path / "run")
    dropped = list(read_lines(tmp_path / "run" / "data" / "dropped.jsonl"))
    assert [(row["line"], row["reason"]) for row in dropped] == [
        (1 + 8 * i, "no_target") for i in range(len(dropped))
    ]
    assert dropped
    (rows,) = [check for check in run.report.checks if check.name == "rows"]
    assert rows.passed
    assert f"{len(dropped)} dropped" in rows.figure


def test_a_set_without_any_trained_token_is_refused(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path)
    silence(recipe, every=1)
    refused(recipe, tmp_path, DataError, "no_target")


def test_a_tokenizer_of_more_tokens_than_the_model_is_refused(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, vocab_size=90)
    refused(recipe, tmp_path, ModelError, "no embedding: the model knows 90 tokens")


def test_a_template_that_drops_the_last_answer_is_refused(tmp_path: Path) -> None:
    short = CHATML.replace("in messages %}", "in messages[:-1] %}", 1)
    recipe = recipe_of(tmp_path, build_tokenizer(short))
    refused(recipe, tmp_path, ModelError, "drops the assistant turn")


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "fp8", "compressed-tensors"])
def test_a_base_that_is_quantised_already_is_refused(tmp_path: Path, method: str) -> None:
    recipe = recipe_of(tmp_path)
    path = tmp_path / "base" / "config.json"
    config = {**json.loads(path.read_text()), "quantization_config": {"quant_method": method}}
    path.write_text(json.dumps(config))
    refused(recipe, tmp_path, ModelError, "quantised already")


def test_a_tokenizer_without_a_pad_token_trains_and_passes_its_checks(tmp_path: Path) -> None:
    tokenizer = build_tokenizer()
    tokenizer.pad_token = None
    run = train(recipe_of(tmp_path, tokenizer), tmp_path / "run")
    failed = [c.name for c in run.report.checks if not c.passed and c.name != "retention"]
    assert failed == []


@pytest.mark.parametrize("tied", [True, False])
def test_a_whole_model_learns_with_its_head_tied_or_not(tmp_path: Path, tied: bool) -> None:
    recipe = recipe_of(tmp_path, tie_word_embeddings=tied)
    recipe = recipe.model_copy(update={"adapt": Full()})
    run = train(recipe, tmp_path / "run")
    failed = [c.name for c in run.report.checks if not c.passed and c.name != "retention"]
    assert failed == []
