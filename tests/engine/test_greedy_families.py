"""Answering many prompts side by side gives every family's own greedy answers."""

from __future__ import annotations

import pytest
import torch
from test_families import FAMILIES, build

from timechat.engine.torch import TorchEngine

PROMPTS = [[5, 6, 7], [9, 8, 7, 6, 5, 4, 3, 11], [20]]


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_in_company_are_the_answers_alone(family: str) -> None:
    model = build(family)
    expected: list[list[int]] = []
    for prompt in PROMPTS:
        ids = list(prompt)
        for _ in range(6):
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits
            ids.append(int(logits[0, -1].argmax()))
        expected.append(ids[len(prompt) :])
    assert TorchEngine(model).answers(PROMPTS, 6, frozenset()) == expected
