"""The export check of a run tells the same of a model that is too large to be folded often."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import ROWS, write_base

from timechat.data.pack import encode
from timechat.model.adapt import LoraLinear, adapters, attach
from timechat.model.load import load, resolve
from timechat.stages.evaluating import checks


def test_a_large_model_is_folded_once_a_hearing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load(resolve(str(write_base(tmp_path / "base"))))
    attach(loaded.model, 4, 8.0, "all")
    torch.manual_seed(0)
    for layer in adapters(loaded.model).values():
        torch.nn.init.normal_(layer.lora_b, std=0.05)
    folds: list[str] = []
    folded = LoraLinear.folded
    monkeypatch.setattr(LoraLinear, "folded", lambda self: folds.append("") or folded(self))
    examples = [encode(row, loaded.renderer) for row in ROWS]
    checked = {}
    for name, limit in (("small", 10**12), ("large", 0)):
        monkeypatch.setattr(checks, "LARGE", limit)
        folds.clear()
        checked[name] = checks.check_export(loaded, examples, tmp_path), len(folds)
    (small, often), (large, once) = checked["small"], checked["large"]
    assert small.passed
    assert large.passed
    assert once == 2 * len(adapters(loaded.model))  # folded as it is, and with the noise
    assert often > once
