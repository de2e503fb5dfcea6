"""A base is read where it lies: mapped, not copied, and its pages let go of after quantising."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from conftest import build_model, build_tokenizer
from torch import nn
from transformers import AutoModelForCausalLM

from timechat.model.mapped import forget
from timechat.model.quantise import quantise

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self")


def resident(kind: str = "RssFile") -> int:
    rows = dict(row.split(":", 1) for row in Path("/proc/self/status").read_text().splitlines())
    return int(rows[kind].split()[0]) * 1024


@pytest.fixture
def mapped(tmp_path: Path) -> nn.Module:
    """A model of 24 MB that was loaded as the loader does."""
    build_model(hidden_size=256, intermediate_size=2048).save_pretrained(tmp_path)
    build_tokenizer().save_pretrained(tmp_path)
    return AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [m.weight for m in model.modules() if isinstance(m, nn.Linear)]


def test_loading_copies_nothing_and_looking_maps_pages(mapped: nn.Module) -> None:
    size = sum(w.numel() * 4 for w in weights(mapped)[:-1])
    before = resident("RssAnon"), resident()
    for weight in weights(mapped):
        assert weight.abs().max() > 0
    assert resident() - before[1] > 0.8 * size
    assert resident("RssAnon") - before[0] < 0.5 * size


def test_what_is_forgotten_leaves_memory_and_is_read_again(mapped: nn.Module) -> None:
    weight = max(weights(mapped), key=torch.Tensor.numel)
    expected = weight.detach().clone()
    before = resident()
    size = forget(weight)
    assert size > 0.9 * weight.numel() * 4
    assert before - resident() > 0.9 * size
    assert torch.equal(weight, expected)


def test_memory_that_no_file_stands_behind_is_left_alone() -> None:
    weight = torch.ones(1024, 1024)
    assert forget(weight) == 0
    assert bool((weight == 1).all())


def test_quantising_leaves_neither_the_weights_nor_their_pages(mapped: nn.Module) -> None:
    size = sum(w.numel() * 4 for w in weights(mapped)[:-1])
    for weight in weights(mapped):
        assert weight.abs().max() > 0
    before = resident()
    quantise(mapped, 4, but=mapped.lm_head)
    assert before - resident() > 0.8 * size
