"""A whole run with each method: checks, a checkpoint that loads, strength, micro-batches."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import part_of_suite
from test_train import make_recipe
from transformers import AutoModelForCausalLM

from timechat.model.load import load, resolve
from timechat.model.quantise import QuantLinear
from timechat.recipe import Recipe, parse_recipe
from timechat.stages.training.train import Run, preview, train
from timechat.store.files import read_json, read_lines


def recipe_for(folder: Path, adapt: dict[str, Any], **more: Any) -> Recipe:
    raw = make_recipe(folder, **more).model_dump(mode="json")
    return parse_recipe({**raw, "adapt": adapt})


@pytest.fixture(scope="module", autouse=True)
def small_suite() -> Generator[None]:
    with part_of_suite(7, 7):
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("methods")


@pytest.fixture(scope="module", params=["full", "layers"])
def run(request: pytest.FixtureRequest, place: Path) -> Run:
    adapt = {"method": request.param, "activation": "gelu" if request.param == "full" else None}
    return train(recipe_for(place, adapt, epochs=2, validations=2), place / request.param)


def test_a_run_learns_passes_its_checks_and_leaves_a_plain_model(run: Run) -> None:
    for check in run.report.checks[:5]:
        assert check.passed, check
    losses = [row["loss"] for row in read_lines(run.folder / "metrics.jsonl") if "loss" in row]
    assert losses[-1] < losses[0]
    best = run.folder / "best"
    assert not (best / "adapter_config.json").exists()
    assert read_json(best / "base.json")["base_digest"]
    ours = load(resolve(str(run.folder)))
    plain = AutoModelForCausalLM.from_pretrained(best, dtype=ours.model.dtype)
    ids = torch.tensor([[5, 9, 31, 7]])
    with torch.no_grad():
        assert torch.equal(ours.model(ids).logits, plain(ids).logits)
    assert "You know the paint shop." in str(ours.tokenizer.chat_template)


def test_an_activation_is_warned_of_in_the_plan_and_kept_in_the_checkpoint(run: Run) -> None:
    plan = read_json(run.folder / "plan.json")["numbers"]
    if run.folder.name == "full":
        assert "has silu" in plan["activation"]["rule"]
        assert read_json(run.folder / "best" / "config.json")["hidden_act"] == "gelu"
    else:
        assert "activation" not in plan


def test_micro_rows_change_memory_and_no_number(place: Path) -> None:
    plan = preview(recipe_for(place, {"method": "full"}, micro_rows=2))
    whole = preview(recipe_for(place, {"method": "full"}, micro_rows=8))
    assert plan["micro_rows"] == 2
    assert plan["memory_bytes"] < whole["memory_bytes"]
    assert plan["steps"] == whole["steps"]


def test_a_run_beside_a_base_in_four_bits_is_served_as_it_was_evaluated(place: Path) -> None:
    adapt = {"method": "qlora", "rank": 4, "strength": 1.0}
    recipe = recipe_for(place, adapt, epochs=1, validations=1, recompute=True, micro_rows=3)
    run = train(recipe, place / "qlora")
    for check in run.report.checks[:5]:
        assert check.passed, check
    assert read_json(run.folder / "best" / "base.json")["bits"] == 4
    plan = read_json(run.folder / "plan.json")["numbers"]
    assert plan["recompute"]["value"] is True
    assert "4 bits" in plan["memory_bytes"]["rule"]
    served = load(resolve(str(run.folder))).model
    assert any(isinstance(module, QuantLinear) for module in served.modules())


def test_a_run_on_repeatable_kernels_ends_in_the_same_bytes_on_a_cpu(place: Path) -> None:
    adapt = {"method": "lora", "rank": 4}
    short = {"epochs": 1, "validations": 1}
    usual = train(recipe_for(place, adapt, **short), place / "usual")
    held = train(recipe_for(place, adapt, deterministic=True, **short), place / "held")
    assert not torch.are_deterministic_algorithms_enabled()
    weights = "best/adapter_model.safetensors"
    assert (held.folder / weights).read_bytes() == (usual.folder / weights).read_bytes()
