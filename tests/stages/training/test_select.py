"""The checkpoint lies on the frontier of task and retention."""

from __future__ import annotations

import pytest
from conftest import ROWS

from timechat.data.pack import encode
from timechat.evals.questions.run import mean_divergence
from timechat.model.adapt import adapters, attach
from timechat.model.load import Loaded
from timechat.stages.training.select import Candidate, choose_checkpoint


def test_the_latest_of_equally_good_checkpoints_is_taken() -> None:
    found = choose_checkpoint(
        [Candidate(10, 1, 0.60, 0.02, 1.0), Candidate(20, 1, 0.61, 0.02, 1.1)]
    )
    assert found.step == 20


def test_one_that_forgot_more_for_the_same_answers_is_not_taken() -> None:
    found = choose_checkpoint(
        [Candidate(10, 1, 0.60, 0.02, 1.0), Candidate(20, 1, 0.61, 0.02, 1.4)]
    )
    assert found.step == 10


def test_one_that_answers_clearly_worse_is_not_taken_for_forgetting_less() -> None:
    found = choose_checkpoint(
        [Candidate(10, 1, 0.40, 0.02, 1.0), Candidate(20, 1, 0.61, 0.02, 1.4)]
    )
    assert found.step == 20


def test_an_adapter_diverges_from_the_base_only_once_it_has_learned(loaded: Loaded) -> None:
    rows = [encode(row, loaded.renderer) for row in ROWS]
    attach(loaded.model, 4, 8.0, "all")
    assert mean_divergence(loaded.model, rows) == pytest.approx(0.0, abs=1e-5)
    for layer in adapters(loaded.model).values():
        layer.lora_b.data.normal_(std=0.2)
    assert mean_divergence(loaded.model, rows) > 0.01
