"""The general suite costs what a run can afford, and says so."""

from __future__ import annotations

import pytest

from timechat.evals.questions.suite import general_suite
from timechat.model.load import Loaded
from timechat.model.render import Renderer
from timechat.stages.evaluating.budget import Pace, afford, allowance, measure_pace, tell_share


def test_a_minute_or_a_twentieth_of_the_run_whichever_is_more() -> None:
    assert allowance(10.0) == allowance(1200.0) == pytest.approx(40.0)
    assert allowance(36_000.0) == pytest.approx(1200.0)


def test_what_is_affordable_is_all_or_tenths_of_every_group(renderer: Renderer) -> None:
    general = general_suite(renderer)
    pace = Pace(1e-3)
    whole = pace.seconds(general)
    assert afford(general, pace, 2, 2 * whole) is general
    part = afford(general, pace, 2, whole)
    assert len(part.choices) == len(general.choices) // 2
    assert 2 * pace.seconds(part) == pytest.approx(whole, rel=0.1)


def test_never_fewer_than_an_interval_is_worth(renderer: Renderer) -> None:
    part = afford(general_suite(renderer), Pace(100.0), 2, 40.0)
    assert len(part.choices) == 202
    assert len({c.cluster for c in part.choices}) == 101


@pytest.mark.parametrize(("busy", "asked"), [(2.0, 505), (3.0, 404), (6.0, 404), (9.0, 303)])
def test_a_busy_machine_asks_enough_for_an_interval(
    renderer: Renderer, busy: float, asked: int
) -> None:
    """The verdict of a run hung on the machine: 303 questions were too few for its margin."""
    general = general_suite(renderer)
    pace = Pace(1e-3)
    quiet = pace.seconds(general)
    assert len(afford(general, Pace(busy * 1e-3), 1, 1.01 * quiet).choices) == asked


def test_a_share_is_told_and_the_whole_is_not(loaded: Loaded) -> None:
    assert tell_share(1010, 1010) == tell_share(1010, 0) == ""
    assert tell_share(505, 1010).startswith("asked 505 of 1,010 general questions")
    assert measure_pace(loaded.model, general_suite(loaded.renderer)).seconds_per_token > 0
