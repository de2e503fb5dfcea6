"""Strengths: chosen on validation, told on the test, and the model left as it was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import ROWS, build_model

from timechat.data.pack import encode
from timechat.evals.questions.suite import Choice, General, task_suite
from timechat.model.adapt import adapters, attach
from timechat.model.load import Loaded
from timechat.records import Measure
from timechat.stages.comparing.strengths import (
    STRENGTHS,
    Setting,
    at_strength,
    choose_setting,
    slide,
)
from timechat.stages.evaluating import cache
from timechat.stages.watch import Watcher

FLAT = Measure("m", 0.0, 0.0, 0.0, (0.0, 0.0), 200, 200, "inconclusive", "share")


def setting(strength: float, accuracy: float, drift: float = 0.0) -> Setting:
    return Setting(strength, accuracy, 0.01, drift, FLAT, FLAT)


@pytest.fixture
def tuned(loaded: Loaded) -> Loaded:
    attach(loaded.model, 2, 4.0, "all")
    for layer in adapters(loaded.model).values():
        torch.nn.init.normal_(layer.lora_b, std=0.2)
    return loaded


def logits(loaded: Loaded) -> torch.Tensor:
    with torch.no_grad():
        return loaded.model(input_ids=torch.arange(1, 12)[None]).logits


def test_no_strength_is_the_base_and_full_strength_is_what_was_tuned(tuned: Loaded) -> None:
    base = replace(tuned, model=build_model())
    before = logits(tuned)
    with at_strength(base, tuned, 0.0):
        assert torch.equal(logits(tuned), logits(base))
    with at_strength(base, tuned, 1.25):
        assert not torch.allclose(logits(tuned), before)
    assert torch.equal(logits(tuned), before)


def test_weights_that_learned_are_taken_part_of_the_way(loaded: Loaded) -> None:
    base, other = replace(loaded, model=build_model()), loaded
    with torch.no_grad():
        layer = other.model.model.layers[1].mlp.up_proj
        layer.weight += 0.1
    learned = layer.weight.detach().clone()
    with at_strength(base, other, 0.5):
        assert torch.allclose(layer.weight, learned - 0.05, atol=1e-6)
    with at_strength(base, other, 0.0):
        assert torch.equal(logits(other), logits(base))
    assert torch.equal(layer.weight, learned)


def test_the_strength_nearest_to_one_among_equals_is_chosen() -> None:
    flat = [setting(s, 0.5) for s in STRENGTHS]
    assert choose_setting(flat) == 1.0
    assert choose_setting([*flat[:4], setting(1.0, 0.3), setting(1.25, 0.3)]) == 0.75
    assert choose_setting([*flat[:5], setting(1.25, 0.6)]) == 1.25


def test_forgetting_weighs_against_a_strength() -> None:
    forgets = [setting(0.5, 0.55, 0.05), setting(0.75, 0.6, 0.1), setting(1.0, 0.62, 0.6)]
    assert choose_setting(forgets) == 0.75


def test_every_strength_is_asked_and_the_base_differs_from_itself_nowhere(
    tuned: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIMECHAT_CACHE", str(tmp_path))
    monkeypatch.setattr(cache, "digest_folder", lambda folder: str(folder))
    renderer = tuned.renderer
    task = task_suite(ROWS, renderer, 10)
    validation = [encode(row, renderer) for row in ROWS]
    general = General(CHOICES, tuple(validation[:2]), ())
    base = replace(tuned, model=build_model())
    found = slide(base, tuned, validation, task, general, 4, 0.05, Watcher())
    assert [s.strength for s in found] == list(STRENGTHS)
    assert (found[0].task.difference, found[0].drift) == (0.0, 0.0)
    assert len({round(s.drift, 9) for s in found}) == len(STRENGTHS)
    again = slide(base, tuned, validation, task, general, 4, 0.05, Watcher(), used=0.5)
    assert [round(s.drift, 6) for s in again[:3]] != [round(s.drift, 6) for s in found[:3]]
    assert again[2].drift == pytest.approx(found[4].drift, abs=1e-6)


CHOICES = tuple(Choice(f"c{i}", f"c{i}", "facts", (1, 2), ((3 + i, 4), (9, 5))) for i in range(3))
