"""Two reports: compared by what they recorded where they asked the same, refused where not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import build_model, build_tokenizer

from timechat.errors import DataError, RecipeError
from timechat.evals.questions.suite import Decoding
from timechat.records import Report
from timechat.stages.comparing import contest, sides
from timechat.stages.comparing.compare import compare
from timechat.stages.comparing.contest import Options
from timechat.stages.watch import Watcher
from timechat.store.files import read_json, write_json

pytestmark = pytest.mark.usefixtures("small_suite")


@pytest.fixture
def models(tmp_path: Path) -> list[str]:
    """Three models of one tokenizer."""
    for i in range(3):
        build_model(seed=i).save_pretrained(tmp_path / f"m{i}")
        build_tokenizer().save_pretrained(tmp_path / f"m{i}")
    return [str(tmp_path / f"m{i}") for i in range(3)]


def questions(path: Path, count: int = 5, answer: str = "It is green.") -> Path:
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"What colour is door {i}?"},
                {"role": "assistant", "content": answer},
            ]
        }
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def report(names: list[str], asked: Path | None, out: Path) -> Report:
    return compare(names, asked, "", out, Watcher())[0]


def test_two_reports_are_compared_without_asking_and_as_if_they_were_asked(
    models: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = questions(tmp_path / "q.jsonl")
    report([models[0], models[1]], asked, tmp_path / "one")
    report([models[0], models[2]], asked, tmp_path / "two")
    whole = report([models[1], models[2]], asked, tmp_path / "whole")
    monkeypatch.delattr(sides, "load")
    found = report([str(tmp_path / "one"), str(tmp_path / "two")], None, tmp_path / "both")
    assert found.task.difference == pytest.approx(whole.task.difference, abs=1e-12)
    measured = {m.name: m.difference for m in whole.measures}
    for measure in found.measures:
        assert measure.difference == pytest.approx(measured[measure.name], abs=1e-12)
    details = read_json(tmp_path / "both" / "report.json")["details"]
    assert details["questions_sha256"] == whole.details["questions_sha256"]
    assert details["decoding"]["max_new_tokens"] == contest.MAX_NEW_TOKENS


@pytest.mark.parametrize("change", [{"count": 6}, {"answer": "It is red."}])
def test_reports_over_different_questions_are_refused(
    models: list[str], tmp_path: Path, change: dict[str, object]
) -> None:
    report(models[:2], questions(tmp_path / "q.jsonl"), tmp_path / "one")
    other = questions(tmp_path / "other.jsonl", **change)  # type: ignore[arg-type]
    report(models[:2], other, tmp_path / "two")
    with pytest.raises(RecipeError, match="asked different questions"):
        report([str(tmp_path / "one"), str(tmp_path / "two")], None, tmp_path / "both")
    assert not (tmp_path / "both" / "report.json").exists()


def test_reports_of_other_decoding_are_refused_with_what_differs(
    models: list[str], tmp_path: Path
) -> None:
    asked = questions(tmp_path / "q.jsonl")
    for name in ("one", "two"):
        report(models[:2], asked, tmp_path / name)
    found = read_json(tmp_path / "two" / "report.json")
    found["details"]["decoding"] = Decoding(12, "other", 0.7).to_dict()
    write_json(tmp_path / "two" / "report.json", found)
    with pytest.raises(RecipeError, match=r"max_new_tokens 96 and 12, temperature 0.0 and 0.7"):
        report([str(tmp_path / "one"), str(tmp_path / "two")], None, tmp_path / "both")


def test_a_report_beside_a_model_or_with_something_to_ask_is_refused(
    models: list[str], tmp_path: Path
) -> None:
    asked = questions(tmp_path / "q.jsonl")
    report(models[:2], asked, tmp_path / "one")
    with pytest.raises(RecipeError, match="two reports, or two models"):
        report([str(tmp_path / "one"), models[0]], None, tmp_path / "both")
    names = [str(tmp_path / "one")] * 2
    with pytest.raises(RecipeError, match="nothing can be asked"):
        compare(names, None, "", tmp_path / "x", Watcher(), Options(judge="http://j.test#j"))


def test_a_report_without_its_answers_is_refused(models: list[str], tmp_path: Path) -> None:
    report(models[:2], questions(tmp_path / "q.jsonl"), tmp_path / "one")
    (tmp_path / "one" / "evals" / "after" / "task.jsonl").unlink()
    with pytest.raises(DataError, match="not the answers behind it"):
        report([str(tmp_path / "one")] * 2, None, tmp_path / "both")


def test_two_runs_that_were_asked_different_things_need_a_file_of_questions(
    tmp_path: Path,
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "recipe.yaml").write_text("base: starter\n")
        write_json(tmp_path / name / "report.json", {"details": {"questions_sha256": name * 64}})
    with pytest.raises(RecipeError, match="asked different questions"):
        report([str(tmp_path / "a"), str(tmp_path / "b")], None, tmp_path / "both")
