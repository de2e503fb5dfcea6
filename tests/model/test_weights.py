"""Which weights learn: by number, range and name; tied heads; another activation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import build_model, build_tokenizer

from timechat.errors import ModelError
from timechat.model.adapt import adapters
from timechat.model.choose import choose_layers, set_activation
from timechat.model.load import Source, load
from timechat.model.method import begin, count_learning
from timechat.model.peft import save_adapter
from timechat.recipe import Full, Layers, Lora

IDS = torch.tensor([[5, 9, 200, 31, 7, 7, 90]])


def learning(model: torch.nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    ("spec", "numbers"),
    [
        (2, {10, 11}),
        ("all", set(range(12))),
        ("auto", {10, 11}),
        ("3-5", {3, 4, 5}),
        ([0, "3-5", 7], {0, 3, 4, 5, 7}),
        (["0"], {0}),
    ],
)
def test_layers_are_chosen_by_number_and_range(spec: object, numbers: set[int]) -> None:
    assert choose_layers(spec, 12).numbers == numbers  # type: ignore[arg-type]


@pytest.mark.parametrize("spec", [13, "10-12", [12], [], "5-3"])
def test_a_layer_that_is_not_there_is_refused_by_number(spec: object) -> None:
    with pytest.raises(ModelError, match=r"adapt\.layers.*12|adapt\.layers.*0 to 11"):
        choose_layers(spec, 12)  # type: ignore[arg-type]


def test_the_last_layers_learn_and_nothing_else() -> None:
    model = build_model()
    begin(model, Layers(layers=1), 0.0, 0)
    assert learning(model)
    assert all(name.startswith("model.layers.1.") for name in learning(model))


def test_layers_are_chosen_by_name() -> None:
    model = build_model()
    begin(model, Layers(layers=("*.mlp.*", "model.norm")), 0.0, 0)
    assert all("mlp" in name or name == "model.norm.weight" for name in learning(model))
    assert len(learning(model)) == 7
    with pytest.raises(ModelError, match=r"no weight's name matches 'attention'.*model\.layers"):
        begin(build_model(), Layers(layers=("attention",)), 0.0, 0)


def test_embeddings_and_head_come_in_by_name_and_a_tied_pair_only_together() -> None:
    untied = build_model(tie_word_embeddings=False)
    begin(untied, Layers(layers=1, head=True), 0.0, 0)
    assert {"lm_head.weight", "model.norm.weight"} <= learning(untied)
    assert "model.embed_tokens.weight" not in learning(untied)
    with pytest.raises(ModelError, match="tied"):
        begin(build_model(), Layers(layers=1, head=True), 0.0, 0)
    tied = build_model()
    begin(tied, Layers(layers=1, head=True, embeddings=True), 0.0, 0)
    assert {"model.embed_tokens.weight", "model.norm.weight"} <= learning(tied)


@pytest.mark.parametrize(
    ("adapt", "lowest"),
    [
        (Lora(rank=2), 0),
        (Lora(rank=2, layers=1), 1),
        (Lora(rank=2, targets=("q_proj",), layers=("layers.1",)), 1),
        (Full(), 0),
        (Layers(layers=1), 1),
        (Layers(layers=1, head=True), 1),
        (Layers(layers=1, embeddings=True), 0),
        (Layers(layers=("model.norm",)), 2),
    ],
)
def test_what_would_learn_is_counted_beforehand(adapt: Lora | Full | Layers, lowest: int) -> None:
    model = build_model(tie_word_embeddings=False)
    counted, found = count_learning(model, adapt)
    begin(model, adapt, 8.0, 0)
    assert counted == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert found == lowest


def test_a_target_that_no_layer_has_is_refused_by_name() -> None:
    with pytest.raises(ModelError, match="'q_prj'"):
        begin(build_model(), Lora(targets=("q_prj",)), 8.0, 0)


def test_another_activation_is_computed_recorded_and_taken_back() -> None:
    model = build_model()
    with torch.no_grad():
        before = model(IDS).logits
        change = begin(model, Lora(rank=2, activation="relu"), 4.0, 0)
        assert model.config.hidden_act == "relu"
        expected = build_model(hidden_act="relu")(IDS).logits
        assert torch.equal(model(IDS).logits, expected)
        with change.base():
            assert torch.equal(model(IDS).logits, before)
            assert model.config.hidden_act == "silu"
        assert torch.equal(model(IDS).logits, expected)


def test_an_unknown_activation_is_refused_with_the_nearest() -> None:
    with pytest.raises(ModelError, match=r"gelu|did you mean"):
        set_activation(build_model(), "gelo")


@pytest.mark.parametrize("adapt", [Lora(rank=2, activation="relu"), Full(activation="relu")])
def test_a_checkpoint_is_served_with_its_own_activation(
    adapt: Lora | Full, tiny_base: Path, tmp_path: Path
) -> None:
    from timechat.model.method import save_model

    model = build_model()
    begin(model, adapt, 4.0, 0)
    assert bool(adapters(model)) == isinstance(adapt, Lora)
    folder = tmp_path / "out"
    folder.mkdir()
    save_model(model, folder, str(tiny_base), "digest", "all")
    build_tokenizer().save_pretrained(folder)
    is_lora = isinstance(adapt, Lora)
    source = Source("x", tiny_base if is_lora else folder, folder if is_lora else None)
    found = load(source).model
    assert found.config.hidden_act == "relu"
    with torch.no_grad():
        gap = (found.float()(IDS).logits - model(IDS).logits).abs().max()
        assert gap < 0.2
        set_activation(found, "silu")
        assert (found(IDS).logits - model(IDS).logits).abs().max() > gap


def test_peft_is_told_of_every_adapted_layer_by_its_full_name(tmp_path: Path) -> None:
    import json

    model = build_model()
    begin(model, Lora(rank=4, layers=1, targets="mlp", rslora=True), 8.0, 0)
    save_adapter(model, tmp_path, "base", "digest", "mlp")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["target_modules"] == [
        f"model.layers.1.mlp.{part}_proj" for part in ("down", "gate", "up")
    ]
    assert config["lora_alpha"] == 16.0  # alpha · √rank, which is rsLoRA's scale
