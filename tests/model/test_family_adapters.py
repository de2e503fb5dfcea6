"""Adapters of many families load in PEFT, and PEFT's load here, with the same logits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from test_families import adapted, build

from timechat.model.peft import load_adapter, save_adapter

# One of each make of attention and of layer names.
SOME = (
    "llama-2", "falcon-40b", "falcon-rw", "stablelm", "pythia", "gemma2", "phi3", "opt", "bloom",
    "gpt-2", "phimoe",
)  # fmt: skip
IDS = torch.tensor([[5, 9, 2, 7, 7, 3, 1, 8, 4]])


@pytest.mark.parametrize("family", SOME)
def test_a_familys_adapter_answers_alike_here_in_peft_and_back(family: str, tmp_path: Path) -> None:
    model = adapted(family)
    ours, again = tmp_path / "ours", tmp_path / "again"
    ours.mkdir()
    model.config.save_pretrained(tmp_path)  # PEFT looks at the base it is told of
    save_adapter(model, ours, str(tmp_path), "digest", "all")
    theirs = PeftModel.from_pretrained(build(family), ours)
    theirs.save_pretrained(again)
    back = build(family)
    load_adapter(back, again)
    with torch.no_grad():
        expected = model(input_ids=IDS).logits
        assert not torch.allclose(build(family)(input_ids=IDS).logits, expected)
        for other in (theirs, back):
            torch.testing.assert_close(other(input_ids=IDS).logits, expected, rtol=1e-5, atol=1e-5)
