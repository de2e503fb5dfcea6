"""What each step trains on: the general rows beside its own are the share that the plan says."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_train import make_recipe

from timechat.data.pack import Example
from timechat.errors import RunError
from timechat.stages.training.batches import cut_batches, plan_steps
from timechat.stages.training.context import build_context
from timechat.stages.watch import Watcher
from timechat.store.files import read_json, write_json

pytestmark = pytest.mark.usefixtures("small_suite")


def row(length: int) -> Example:
    return Example((1,) * length, (1.0,) * length, str(length))


@pytest.mark.parametrize("size", [90, 150, 400])
def test_batches_of_whole_rows_hold_the_wanted_tokens_in_the_mean(size: int) -> None:
    rows = [row(30 + 37 * i % 60) for i in range(200)]
    batches = cut_batches(rows, size)
    assert [r for batch in batches for r in batch] == rows
    # The last one is what is left over.
    tokens = [sum(len(r.ids) for r in batch) for batch in batches[:-1]]
    assert sum(tokens) / len(tokens) == pytest.approx(size, rel=0.02)
    assert max(abs(n - size) for n in tokens) <= 90


def test_a_batch_smaller_than_a_row_is_one_row() -> None:
    assert [len(batch) for batch in cut_batches([row(50)] * 5, 10)] == [1] * 5


def test_the_rows_of_a_run_are_held_by_the_planned_share_of_computed_tokens(
    tmp_path: Path,
) -> None:
    """Rows of 75 tokens and more that share 41: counted whole, replay would be twice the share."""
    context = build_context(make_recipe(tmp_path, replay=0.4), tmp_path / "run", Watcher())
    computed = held = 0
    for build in plan_steps(context):
        for batch in build():
            computed += batch.ids.shape[1]
            held += sum(len(example.ids) for example in batch.held)
    assert context.plan["replay_share"] == 0.4
    assert held / computed == pytest.approx(0.4, abs=0.05)


def test_a_run_that_an_older_version_planned_is_refused(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path)
    build_context(recipe, tmp_path / "run", Watcher())
    path = tmp_path / "run" / "plan.json"
    plan = read_json(path)
    del plan["numbers"]["replay_tokens"]
    write_json(path, plan)
    with pytest.raises(RunError, match="older version"):
        build_context(recipe, tmp_path / "run", Watcher())
