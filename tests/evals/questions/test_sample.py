"""A part of the suite is the same share of every group, and always the same part."""

from __future__ import annotations

from collections import Counter

import pytest

from timechat.evals.questions.sample import keep_only, take_share
from timechat.evals.questions.suite import General, general_suite
from timechat.model.render import Renderer


@pytest.fixture
def general(renderer: Renderer) -> General:
    return general_suite(renderer)


def test_every_group_gives_the_same_share(general: General) -> None:
    part = take_share(general, 0.5)
    whole = Counter((c.tag, c.cluster) for c in general.choices)
    found = Counter((c.tag, c.cluster) for c in part.choices)
    assert set(found) == set(whole)
    assert all(found[group] == -(-count // 2) for group, count in whole.items())
    assert len(part.prose) == -(-len(general.prose) // 2)


def test_a_smaller_part_lies_within_a_larger_one_and_is_drawn_alike_every_time(
    general: General,
) -> None:
    small, large = take_share(general, 0.2), take_share(general, 0.7)
    assert set(small.choices) < set(large.choices) < set(general.choices)
    assert small == take_share(general, 0.2)


def test_all_of_it_is_the_suite_itself(general: General) -> None:
    assert take_share(general, 1.0) is general


def test_a_name_that_is_no_question_is_told(general: General) -> None:
    names = [[row.id for row in rows] for rows in (general.prose, general.answers)]
    assert keep_only(general, ["facts-000-gone"], *names) is None
    kept = keep_only(general, [general.choices[3].id], *names)
    assert kept is not None
    assert kept.choices == (general.choices[3],)
