"""Known shapes give the models their makers published, and a plan without a byte downloaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from timechat.errors import ModelError
from timechat.model.shapes import SHAPES, skeleton
from timechat.recipe_file import load_recipe
from timechat.stages.training.train import preview

# Parameters in billions, as the makers' papers and cards say.
SIZES = {
    "huggyllama/llama-7b": 6.74,
    "huggyllama/llama-13b": 13.02,
    "huggyllama/llama-65b": 65.29,
    "meta-llama/Llama-2-7b-hf": 6.74,
    "meta-llama/Llama-2-13b-hf": 13.02,
    "meta-llama/Llama-2-70b-hf": 68.98,
    "openlm-research/open_llama_3b_v2": 3.43,
    "tiiuae/falcon-7b": 6.92,
    "tiiuae/falcon-40b": 41.84,
    "stabilityai/stablelm-2-1_6b": 1.64,
    "stabilityai/stablelm-3b-4e1t": 2.80,
    "EleutherAI/pythia-70m": 0.07,
    "EleutherAI/pythia-2.8b": 2.78,
    "EleutherAI/pythia-6.9b": 6.86,
    "EleutherAI/pythia-12b": 11.85,
}
RECIPES = Path(__file__).parents[3] / "recipes"


@pytest.mark.parametrize("name", SIZES)
def test_a_known_shape_has_its_makers_number_of_parameters(name: str) -> None:
    model = skeleton(name)
    assert all(p.is_meta for p in model.parameters())
    billions = sum(p.numel() for p in model.parameters()) / 1e9
    assert billions == pytest.approx(SIZES[name], rel=0.02)


def test_every_known_model_has_a_recipe_and_every_family_recipe_a_known_model() -> None:
    bases = {load_recipe(path).base for path in RECIPES.glob("*.yaml")}
    assert set(SHAPES) == {base for base in bases if "/" in base}


def test_a_7b_recipe_is_planned_from_its_shape_alone() -> None:
    plan = preview(load_recipe(RECIPES / "llama-2-7b.yaml"))
    assert plan["parameters"] == 6_738_415_616
    assert plan["train_seconds"] > 60
    assert "estimated" in plan.numbers["row_tokens"].rule
    assert plan["memory_bytes"] > 13 * 2**30


def test_a_recurrent_model_is_refused_in_the_plan_already(monkeypatch: pytest.MonkeyPatch) -> None:
    mamba = {"model_type": "mamba", "hidden_size": 32, "num_hidden_layers": 2}
    monkeypatch.setitem(SHAPES, "state-spaces/mamba", mamba)
    recipe = load_recipe(RECIPES / "llama-2-7b.yaml", ["base=state-spaces/mamba"])
    with pytest.raises(ModelError, match="mamba is recurrent"):
        preview(recipe)
