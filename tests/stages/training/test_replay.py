"""Replay of the base's own answers: made once, kept in the run, the same when it goes on; and the
strength arm and people's picks seen in one comparison of the run that comes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_train import make_recipe

from timechat.engine.torch import TorchEngine
from timechat.evals.questions import suite
from timechat.model.load import load, resolve
from timechat.recipe import Recipe
from timechat.stages.comparing.compare import compare
from timechat.stages.comparing.contest import Options
from timechat.stages.training.replay import MAX_TOKENS
from timechat.stages.training.train import resume, train
from timechat.stages.watch import Watcher
from timechat.store.files import read_json, read_lines, sha256

pytestmark = pytest.mark.usefixtures("small_suite")


def recipe_of(folder: Path) -> Recipe:
    return make_recipe(folder, replay_from="base", replay=0.3, epochs=1)


def test_a_run_is_held_to_what_its_base_says_and_goes_on_with_the_same_words(
    tmp_path: Path,
) -> None:
    run = train(recipe_of(tmp_path), tmp_path / "run")
    kept = list(read_lines(tmp_path / "run" / "replay.jsonl"))
    assert kept
    base = load(resolve(str(tmp_path / "base")))
    prompts = [base.renderer.prompt(row.question) for row in suite.answer_conversations("replay")]
    said = TorchEngine(base.model).answers(prompts, 64, base.renderer.stop_ids)
    texts = {base.renderer.parse(ids).strip() for ids in said}
    assert {row["messages"][-1]["content"] for row in kept} <= texts
    share = read_json(run.folder / "plan.json")["numbers"]["replay_share"]
    assert share["value"] == 0.3
    assert "the base's own answers" in share["rule"]
    digest = sha256(tmp_path / "run" / "replay.jsonl")
    resume(tmp_path / "run")
    assert sha256(tmp_path / "run" / "replay.jsonl") == digest


def test_another_run_on_the_same_base_does_not_ask_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(recipe_of(tmp_path), tmp_path / "run")
    plain = TorchEngine.answers

    def answers(self: TorchEngine, prompts: Any, most: int, *rest: Any) -> list[list[int]]:
        assert most != MAX_TOKENS, "the base was asked for its own answers"
        return plain(self, prompts, most, *rest)

    monkeypatch.setattr(TorchEngine, "answers", answers)
    train(recipe_of(tmp_path), tmp_path / "again")
    one, two = (tmp_path / name / "replay.jsonl" for name in ("run", "again"))
    assert sha256(one) == sha256(two)


def test_a_runs_strengths_are_asked_and_its_own_one_is_named(tmp_path: Path) -> None:
    run = train(recipe_of(tmp_path), tmp_path / "run").folder
    options = Options(("strengths", "few-shot"))
    report, out = compare([str(run)], None, "", tmp_path / "out", Watcher(), options)
    details = read_json(out / "report.json")["details"]
    slider = details["slider"]
    assert [at["strength"] for at in slider["settings"]] == [0, 0.25, 0.5, 0.75, 1.0, 1.25]
    assert slider["used"] == read_json(run / "report.json")["run"]["strength"]
    full = slider["settings"][4]
    assert full["task"]["after"] == pytest.approx(report.task.after)
    assert any(line.startswith(f"strength {slider['chosen']:g} is") for line in report.findings)
    assert "best on validation" in (out / "report.md").read_text()
    assert [arm["name"] for arm in details["arms"]] == ["few-shot"]
