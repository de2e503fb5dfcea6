"""A lesson's two parts: corrections beside rows that are held, then rows that are rehearsed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from test_train import make_recipe

from timechat.conversation import Conversation
from timechat.data.pack import Batch
from timechat.stages.learning.curriculum import LEARNING, REHEARSING, Lengths, plan_lesson
from timechat.stages.training.context import Context, build_context
from timechat.stages.watch import Watcher

pytestmark = pytest.mark.usefixtures("small_suite")


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return build_context(make_recipe(tmp_path, replay=0.4), tmp_path / "run", Watcher())


def split(context: Context) -> tuple[Context, list[Conversation]]:
    """The context with three rows as corrections, and the others as those of the run."""
    taught, own = list(context.train[:3]), list(context.train[3:])
    return replace(context, train=taught, examples=context.examples[:3]), own


def steps(
    context: Context, own: list[Conversation], lengths: Lengths, seed: int = 0
) -> list[tuple[list[str], list[str]]]:
    """Of each step the rows that are trained, and those that are held."""
    return [told(build()) for build in plan_lesson(context, lengths, own, seed)]


def told(step: tuple[Batch, ...]) -> tuple[list[str], list[str]]:
    trained = [r.id for b in step for r in b.rows[: len(b.rows) - len(b.held)]]
    return trained, [r.id for b in step for r in b.held]


def test_rows_of_the_run_are_held_while_it_learns_and_trained_while_it_rehearses(
    context: Context,
) -> None:
    context, own = split(context)
    taught, rest = {row.id for row in context.train}, {row.id for row in own}
    found = steps(context, own, Lengths(2, 3))
    assert len(found) == 5
    for trained, held in found[:2]:
        assert len(trained) == LEARNING[0]
        assert set(trained) <= taught
        assert sum(row in rest for row in held) == min(LEARNING[1], len(own))
    for trained, held in found[2:]:
        assert sum(row in taught for row in trained) == REHEARSING[0]
        assert sum(row in rest for row in trained) == min(REHEARSING[1], len(own))
        assert held
        assert not rest & set(held), "general text alone is held"


def test_every_row_has_its_turn_before_one_has_its_second(context: Context) -> None:
    context, own = split(context)
    lengths = Lengths(2, 3)
    seen = [row for trained, _ in steps(context, own, lengths) for row in trained]
    counts = [seen.count(row.id) for row in context.train]
    assert sum(counts) == lengths.views
    assert max(counts) - min(counts) <= 1
    rehearsed = [seen.count(row.id) for row in own]
    assert max(rehearsed) - min(rehearsed) <= 1


def test_a_step_is_the_same_whenever_it_is_built(context: Context) -> None:
    context, own = split(context)
    lengths = Lengths(2, 2)
    build = plan_lesson(context, lengths, own, 5)
    backwards = [ids(step()) for step in reversed(build)][::-1]
    assert backwards == [ids(step()) for step in plan_lesson(context, lengths, own, 5)]
    assert backwards != [ids(step()) for step in plan_lesson(context, lengths, own, 6)]


def ids(step: tuple[Batch, ...]) -> list[list[list[int]]]:
    return [batch.ids.tolist() for batch in step]


def test_a_run_without_rows_of_its_own_learns_all_the_same(context: Context) -> None:
    context, _ = split(context)
    found = steps(context, [], Lengths(1, 1))
    assert [len(trained) for trained, _ in found] == [LEARNING[0], REHEARSING[0]]


def test_rehearsal_grows_with_what_was_learned() -> None:
    assert (Lengths.of(10).learning, Lengths.of(10).rehearsing) == (20, 48)
    assert Lengths.of(1).learning == 12
    assert Lengths.of(100).rehearsing == 480
