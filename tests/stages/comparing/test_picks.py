"""The before-and-after challenge: picks lie in the ledger, become pairs, and count like others."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import scipy.stats
from conftest import conversation

from timechat.conversation import Conversation
from timechat.data.sources import open_sources
from timechat.evals.questions.suite import Task
from timechat.evals.reporting.extras import list_people
from timechat.ledger.judging import Judgement
from timechat.recipe import Data
from timechat.stages.annotating.annotate import open_folder
from timechat.stages.annotating.collect import collect
from timechat.stages.comparing.picks import weigh_picks
from timechat.store.files import write_lines

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


def tick(run: Path, annotator: str, said: list[tuple[str, tuple[str, ...] | None]]) -> None:
    queue = open_folder(run, annotators=2).queue
    for verdict, ticks in said:
        item = queue.claim(annotator)
        assert item is not None
        queue.answer(Judgement(item.id, annotator, verdict, ticks=ticks))


def test_ticks_are_weighed_by_question_with_the_same_statistics_and_by_person(run: Path) -> None:
    clear, brief = ("clearer",), ("clearer", "shorter")
    tick(run, "ann", [("second", brief)] * 60 + [("first", clear)] * 12 + [("tie", ())] * 48)
    tick(run, "ben", [("second", clear)] * 60 + [("first", None)] * 60)
    details, findings = weigh_picks(run, TASK, BEFORE, AFTER)
    clearer, accurate, _, shorter = details["ticks"]
    # Where ben was not asked, ann alone is the whole of the question.
    assert (clearer["new"], clearer["old"]) == (120, 12)
    assert clearer["measure"]["after"] == pytest.approx(60 / 120)
    assert clearer["measure"]["before"] == pytest.approx(12 / 120)
    assert shorter["measure"]["after"] == pytest.approx(60 * 0.5 / 120)
    expected = scipy.stats.ttest_1samp([0.5] * 60 + [0.0] * 60, 0).confidence_interval()
    assert shorter["measure"]["ci95"] == pytest.approx(tuple(expected), abs=1e-9)
    assert (accurate["new"], accurate["measure"]["difference"]) == (0, 0.0)
    assert details["by_person"] == {
        "ann": {"picks": 120, "asked_for_ticks": 120, "ticks": {"clearer": 72, "shorter": 60}},
        "ben": {"picks": 120, "asked_for_ticks": 60, "ticks": {"clearer": 60}},
    }
    assert "clearer 50% against 10%" in findings[1]
    shown = dict(list_people(details))
    assert shown["chosen as clearer"].startswith("the new answer 120 times (50.0%), the old one 12")
    assert shown["by ann"] == "120 picks, ticked clearer 72, shorter 60"


def test_picks_without_ticks_are_told_as_not_asked_for_and_never_as_none(run: Path) -> None:
    pick(run, {"ann": ["second"] * 5})
    details, findings = weigh_picks(run, TASK, BEFORE, AFTER)
    assert details["ticks"] == []
    assert len(findings) == 1
    assert dict(list_people(details))["by ann"] == "5 picks, not asked for ticks"


def test_preference_pairs_and_the_spreadsheet_carry_the_ticks(run: Path, tmp_path: Path) -> None:
    tick(run, "ann", [("second", ("clearer", "shorter")), ("first", ())])
    tick(run, "ben", [("second", ("clearer",)), ("first", None)])
    queue = open_folder(run).queue
    collect(queue, "pairs", tmp_path / "pairs.jsonl")
    first, second = map(json.loads, (tmp_path / "pairs.jsonl").read_text().splitlines())
    assert first["ticks"] == {"clearer": 2, "shorter": 1}
    assert "ticks" not in second
    collect(queue, "csv", tmp_path / "said.csv")
    rows = list(csv.DictReader((tmp_path / "said.csv").read_text().splitlines()))
    assert [row["ticks"] for row in rows] == ["clearer, shorter", "", "clearer", ""]
    # And the pairs are training data as they stand.
    source = open_sources([str(tmp_path / "pairs.jsonl")], Data())[0]
    assert all(isinstance(row.found, Conversation) for row in source.rows())


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
