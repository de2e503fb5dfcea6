"""A learning rate that explodes ends the run with a clear word; a merely high one does not."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_train import make_recipe

from timechat.errors import TrainingError
from timechat.recipe import Full
from timechat.stages.training.health import EXPLODED, Health
from timechat.stages.training.train import train
from timechat.store.files import read_lines

pytestmark = pytest.mark.usefixtures("small_suite")


def watched(*losses: float) -> bool:
    health = Health()
    for step, loss in enumerate(losses, start=1):
        health.watch(step, loss)
    return health.has_exploded


def test_losses_far_above_the_bases_own_for_some_steps_are_an_explosion() -> None:
    assert watched(3.0, 2.9, *[6.0] * EXPLODED)
    assert watched(0.1, *[1.5] * EXPLODED)


def test_a_spike_a_rise_and_a_bad_base_are_none() -> None:
    assert not watched(3.0, *[6.0] * (EXPLODED - 1), 2.8, *[6.0] * (EXPLODED - 1))
    assert not watched(3.0, *[5.0] * 50)
    assert not watched(11.0, *[12.0] * 50)


def test_what_exploded_is_remembered_in_a_checkpoint() -> None:
    health = Health(first=3.0, far=EXPLODED - 1)
    health.watch(9, 6.0)
    assert health.has_exploded


def test_a_run_at_an_exploding_rate_stops_and_names_the_rate(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, learning_rate=1.0, epochs=8, warmup=0.0)
    recipe = recipe.model_copy(update={"adapt": Full()})
    with pytest.raises(TrainingError, match=r"loss exploded: .* rate of 1 is too high"):
        train(recipe, tmp_path / "run")
    history = list(read_lines(tmp_path / "run" / "history.jsonl"))
    assert history[-1]["event"] == "failed"
    steps = [row for row in read_lines(tmp_path / "run" / "metrics.jsonl") if "loss" in row]
    assert EXPLODED < len(steps) <= EXPLODED + 8
