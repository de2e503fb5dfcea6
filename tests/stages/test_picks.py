"""The before-and-after challenge: picks lie in the ledger, become pairs, and count like others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import conversation

from timechat.evals.suite import Task
from timechat.ledger.annotation import Judgement
from timechat.stages.annotate import open_folder
from timechat.stages.collect import collect
from timechat.stages.picks import weigh_picks
from timechat.store import write_lines

NUM = 120
ROWS = tuple(conversation(f"q{i}", f"Door {i}?", "Green") for i in range(NUM))
TASK = Task(ROWS, ((),) * NUM, ())
BEFORE, AFTER = [f"old {i}" for i in range(NUM)], [f"new {i}" for i in range(NUM)]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for side, answers in (("before", BEFORE), ("after", AFTER)):
        rows = [
            {
                "id": q.id,
                "group": "",
                "question": [m.to_dict() for m in q.question],
                "answer": answer,
            }
            for q, answer in zip(ROWS, answers, strict=True)
        ]
        write_lines(tmp_path / "run" / "evals" / side / "task.jsonl", rows)
    return tmp_path / "run"


def pick(run: Path, verdicts: dict[str, list[str]]) -> None:
    """Every annotator goes through the queue, in the queue's own order."""
    queue = open_folder(run, annotators=len(verdicts)).queue
    for annotator, said in verdicts.items():
        for verdict in said:
            item = queue.claim(annotator)
            assert item is not None
            queue.answer(Judgement(item.id, annotator, verdict))


def test_picks_get_the_same_statistics_and_become_preference_pairs(
    run: Path, tmp_path: Path
) -> None:
    said = ["second"] * 80 + ["first"] * 20 + ["tie"] * 20
    pick(run, {"ann": said, "bob": said})
    details, findings = weigh_picks(run, TASK, BEFORE, AFTER)
    assert details["measure"]["after"] == pytest.approx((80 + 10) / 120)
    assert (details["measure"]["n"], details["measure"]["verdict"]) == (120, "improved")
    assert (details["people"], details["picks"]) == (2, 240)
    assert details["verdicts"] == {"second": 160, "first": 40, "tie": 40}
    assert "2 people chose between the answers to 120 questions" in findings[0]
    assert "the new ones win 75%" in findings[0]
    pairs = tmp_path / "pairs.jsonl"
    assert collect(open_folder(run).queue, "pairs", pairs).written == 100
    first = json.loads(pairs.read_text().splitlines()[0])
    assert first["preferred_output"][0]["content"] == "new 0"


def test_the_answers_are_unnamed_and_their_order_is_a_fair_coin(run: Path) -> None:
    items = open_folder(run).queue.items()
    orders = [item.shown_order("ann") for item in items]
    assert 40 < sum(order == (1, 0) for order in orders) < 80
    assert [item.shown_order("bob") for item in items] != orders


def test_picks_of_other_answers_and_skipped_questions_count_nowhere(run: Path) -> None:
    pick(run, {"ann": ["skip"] * 5 + ["second"] * 5})
    details, _ = weigh_picks(run, TASK, BEFORE, AFTER)
    assert details["measure"]["n"] == 5
    assert details["measure"]["verdict"] == "inconclusive"
    assert weigh_picks(run, TASK, BEFORE, [f"newer {i}" for i in range(NUM)]) == ({}, [])


def test_a_folder_without_picks_says_nothing(run: Path, tmp_path: Path) -> None:
    assert weigh_picks(tmp_path, TASK, BEFORE, AFTER) == ({}, [])
    open_folder(run)
    assert weigh_picks(run, TASK, BEFORE, AFTER) == ({}, [])
