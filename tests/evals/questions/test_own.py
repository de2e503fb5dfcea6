"""Retention questions of the user: asked whole, measured beside, refused where they are none."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import conversation

from timechat.errors import DataError
from timechat.evals.questions.own import own_choices
from timechat.evals.questions.run import Choosing, Likelihood
from timechat.evals.questions.sample import take_share
from timechat.evals.questions.suite import OWN, Task, general_suite
from timechat.model.render import Renderer
from timechat.recipe_file import load_recipe
from timechat.records import Measure, Score
from timechat.stages.evaluating.checks import check_retention
from timechat.stages.evaluating.report import OWN_NAME, measure_all
from timechat.stages.evaluating.snapshot import Snapshot


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


ROW = {"question": "Who wrote it?", "answer": "Ann", "wrong": ["Bob", "Cy"], "group": "who"}


def test_own_questions_are_asked_whole_however_few_of_the_others_are(
    renderer: Renderer, tmp_path: Path
) -> None:
    file = write(tmp_path / "own.jsonl", ROW, {**ROW, "question": "Who drew it?", "id": "drew"})
    own = own_choices([file], renderer)
    assert [(c.id, c.cluster, c.tag) for c in own] == [
        ("own:own.jsonl:1", "own:who", OWN),
        ("own:drew", "own:who", OWN),
    ]
    assert len(own[0].answers) == 3
    part = take_share(general_suite(renderer, own=own), 0.1)
    assert part.choices[-2:] == own
    assert 101 <= len(part.choices) - 2 <= 202


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ("{", "is not JSON"),
        ("[]", "is no object"),
        (json.dumps({**ROW, "wrongs": []}), "did you mean 'wrong'"),
        (json.dumps({**ROW, "wrong": []}), "needs a question"),
        (json.dumps({**ROW, "wrong": ["Ann"]}), "two of the answers are the same"),
        (json.dumps({"messages": []}), "unknown key 'messages'"),
        ("", "holds no question"),
    ],
)
def test_a_row_that_is_no_question_is_named(
    renderer: Renderer, tmp_path: Path, row: str, told: str
) -> None:
    file = tmp_path / "own.jsonl"
    file.write_text(f"{row}\n")
    with pytest.raises(DataError, match=told):
        own_choices([file], renderer)


def test_a_missing_file_and_a_repeated_id_are_refused(renderer: Renderer, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        own_choices([tmp_path / "none.jsonl"], renderer)
    file = write(tmp_path / "own.jsonl", {**ROW, "id": "a"}, {**ROW, "id": "a"})
    with pytest.raises(DataError, match="is also at"):
        own_choices([file], renderer)


def snapshot(own_right: int) -> Snapshot:
    def choosing(i: int, tag: str, right: bool) -> Choosing:
        return Choosing(f"{tag}{i}", f"{tag}{i}", tag, (1.0 if right else -1.0, 0.0))

    choices = [choosing(i, "facts", True) for i in range(200)]
    choices += [choosing(i, OWN, i < own_right) for i in range(120)]
    text = [Likelihood("a", 1.0, 2, 1), Likelihood("b", 1.0, 2, 1)]
    return Snapshot(["x"], [Score("q", "q", 1.0, "s")], text[:1], choices, text, text)


def test_own_questions_lost_are_told_beside_general_ability_kept() -> None:
    task = Task((replace(conversation("a", "Hi", "x")),), ((),), ())
    one = replace(snapshot(120), scores=[Score("a", "a", 1.0, "s")])
    two = replace(snapshot(60), scores=[Score("a", "a", 1.0, "s")])
    measures = {m.name: m for m in measure_all(task, one, two, 0.05)}
    assert (measures["general ability"].n, measures["general ability"].verdict) == (200, "kept")
    assert (measures[OWN_NAME].n, measures[OWN_NAME].verdict) == (120, "lost")
    check = check_retention(measures["general ability"], 0.05, 200, measures[OWN_NAME])
    assert not check.passed
    assert "your own 120 questions lost" in check.figure


def test_a_recipe_finds_its_retention_files_beside_it(tmp_path: Path) -> None:
    write(tmp_path / "own.jsonl", ROW)
    (tmp_path / "recipe.yaml").write_text("evaluate: {retention: [own.jsonl]}\n")
    found = load_recipe(tmp_path / "recipe.yaml").evaluate.retention
    assert found == (str(tmp_path / "own.jsonl"),)


def test_without_own_questions_nothing_is_said_of_them() -> None:
    kept = Measure("general ability", 1, 1, 0, (0, 0), 200, 200, "kept", "share")
    assert "your own" not in check_retention(kept, 0.05).figure
