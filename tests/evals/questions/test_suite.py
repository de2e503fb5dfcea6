"""The general suite is large, checkable, and holds nothing that training replays."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from timechat.evals.questions.suite import ITEMS
from timechat.shipped import shipped

TAGS = {
    *("facts", "reading", "arithmetic", "commonsense", "grammar", "instruction", "refusal"),
}


def rows(name: str) -> list[dict[str, Any]]:
    with shipped(name).open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def items(split: str) -> list[dict[str, Any]]:
    found = [row for name in ITEMS for row in rows(name)]
    return [row for row in found if row.get("split", "measure") == split]


def test_a_thousand_items_are_measured_a_hundred_in_ten_groups_of_every_kind() -> None:
    measured = items("measure")
    assert len(measured) >= 1000
    kinds = Counter(row["tags"][0] for row in measured)
    assert set(kinds) == TAGS
    for tag in TAGS:
        groups = {row["group"] for row in measured if row["tags"][0] == tag}
        assert kinds[tag] >= 100, tag
        assert len(groups) >= 10, tag


def test_every_item_has_one_right_and_three_wrong_answers_and_a_question_of_its_own() -> None:
    every = [*items("measure"), *items("choose")]
    assert len({row["id"] for row in every}) == len(every)
    assert len({row["question"] for row in every}) == len(every)
    for row in every:
        assert len({row["answer"], *row["wrong"]}) == 4, row
        assert all(text.strip() for text in (row["question"], row["answer"], *row["wrong"])), row


def test_what_is_watched_while_training_is_never_what_is_measured() -> None:
    watched = items("choose")
    assert {row["tags"][0] for row in watched} == TAGS
    assert not {row["group"] for row in watched} & {row["group"] for row in items("measure")}


def test_nothing_that_is_measured_is_replayed() -> None:
    asked = {row["question"].casefold() for row in [*items("measure"), *items("choose")]}
    for row in rows("general/answers.jsonl"):
        assert row["messages"][0]["content"].casefold() not in asked


def test_the_generated_items_are_what_their_script_makes() -> None:
    script = Path(__file__).parents[3] / "bench" / "proof_items.py"
    done = subprocess.run(
        [sys.executable, str(script), "--check"], capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
