"""A whole run on a tiny model: its files, its report, resume, and the way back into plain PEFT."""

from __future__ import annotations

import json
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import part_of_suite, write_base
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

import timechat
from timechat.errors import PlanError, RunError
from timechat.model.load import load, resolve
from timechat.recipe import Recipe, parse_recipe
from timechat.records import Plan, StepRecord
from timechat.stages.training.train import Run, preview, train
from timechat.stages.watch import Watcher
from timechat.store.files import read_json, read_lines, sha256

COLOURS = ("red", "blue", "green", "white", "black", "brown", "pink", "grey")
THINGS = ("door", "roof", "boat", "coat", "lamp", "cup")


def write_rows(path: Path) -> Path:
    """48 rows in 48 groups: what colour a thing has."""
    lines = [
        {
            "group": f"{colour}-{thing}",
            "messages": [
                {"role": "user", "content": f"What colour is {thing} {number}?"},
                {"role": "assistant", "content": f"It is {colour}."},
            ],
        }
        for number, colour in enumerate(COLOURS)
        for thing in THINGS
    ]
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return path


def make_recipe(folder: Path, **train_section: Any) -> Recipe:
    base = folder / "base"
    if not base.is_dir():
        write_base(base)
    settings = {"epochs": 4, "learning_rate": 5e-3, "batch_rows": 8, "validations": 4}
    return parse_recipe(
        {
            "base": str(base),
            "data": {
                "train": [str(write_rows(folder / "rows.jsonl"))],
                "system": "You know the paint shop.",
            },
            "adapt": {"rank": 4, "strength": 1.0},
            "train": {**settings, **train_section},
            "evaluate": {"max_new_tokens": 8},
        }
    )


class Stopping(Watcher):
    """Pulls the plug after a number of steps."""

    def __init__(self, after: int) -> None:
        self.after = after

    def stepped(self, record: StepRecord, total: int) -> None:
        if record.step == self.after:
            raise KeyboardInterrupt


@pytest.fixture(scope="module", autouse=True)
def small_suite() -> Generator[None]:
    with part_of_suite(7, 7):
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def finished(place: Path) -> Run:
    return train(make_recipe(place), place / "out")


def test_a_run_leaves_the_files_of_the_contract(finished: Run) -> None:
    names = {path.name for path in finished.folder.iterdir()}
    assert names >= {
        "recipe.yaml", "plan.json", "environment.json", "data", "metrics.jsonl", "samples.jsonl",
        "checkpoints", "best", "evals", "report.json", "report.md", "report.html",
    }  # fmt: skip
    assert (finished.folder / "best").is_symlink()
    assert {p.name for p in (finished.folder / "best").iterdir()} >= {
        "manifest.json", "adapter_config.json", "adapter_model.safetensors", "tokenizer.json",
    }  # fmt: skip
    for side in ("before", "after"):
        assert list((finished.folder / "evals" / side).glob("*.jsonl"))


def test_report_json_has_the_shape_that_scripts_rely_on(finished: Run) -> None:
    report = read_json(finished.folder / "report.json")
    assert report["verdict"] in ("improved", "not_improved", "inconclusive")
    names = [check["name"] for check in report["checks"]]
    assert names == ["template", "rows", "gradient", "resume", "export", "retention"]
    keys = {"before", "after", "difference", "ci95", "n", "clusters", "verdict"}
    for measure in (report["task"], report["retention"], *report["measures"]):
        assert keys <= set(measure)
    assert {"question", "before", "after", "reference"} <= set(report["samples"][0])


def test_the_mechanical_checks_pass_with_a_figure(finished: Run) -> None:
    for check in finished.report.checks[:5]:
        assert check.passed, check
        assert any(character.isdigit() for character in check.figure)


def test_every_step_and_validation_is_in_the_log(finished: Run) -> None:
    rows = list(read_lines(finished.folder / "metrics.jsonl"))
    steps = [row for row in rows if "loss" in row]
    plan = read_json(finished.folder / "plan.json")
    total = plan["numbers"]["steps"]["value"]
    assert [row["step"] for row in steps] == list(range(1, total + 1))
    assert set(steps[0]) >= {
        "step", "loss", "tokens", "target_tokens", "elapsed_s", "learning_rate", "grad_norm",
    }  # fmt: skip
    validations = [row["step"] for row in rows if "validation_loss" in row]
    assert validations[0] == 0
    assert validations[-1] == total
    assert steps[-1]["loss"] < steps[0]["loss"]
    samples = list(read_lines(finished.folder / "samples.jsonl"))
    assert len(samples) == 3 * len(validations)


def test_every_number_of_the_plan_has_a_rule(finished: Run) -> None:
    numbers = read_json(finished.folder / "plan.json")["numbers"]
    assert all(number["rule"] for number in numbers.values())


def test_plain_peft_runs_the_best_checkpoint_and_agrees(finished: Run) -> None:
    folder = finished.folder / "best"
    ours = load(resolve(str(finished.folder)))
    config = read_json(folder / "adapter_config.json")
    base = AutoModelForCausalLM.from_pretrained(
        config["base_model_name_or_path"], dtype=ours.model.dtype
    )
    theirs = PeftModel.from_pretrained(base, str(folder)).eval().float()
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    question = [{"role": "user", "content": "What colour is boat 3?"}]
    ids = tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )["input_ids"]
    assert "You know the paint shop." in tokenizer.decode(ids[0])
    with torch.no_grad():
        torch.testing.assert_close(
            theirs(ids).logits, ours.model.float()(ids).logits, rtol=1e-4, atol=1e-4
        )


def test_an_interrupted_run_continues_to_the_same_bytes(place: Path, finished: Run) -> None:
    recipe = make_recipe(place)
    out = place / "stopped"
    with pytest.raises(KeyboardInterrupt):
        train(recipe, out, Stopping(after=7))
    assert not (out / "report.json").exists()
    again = timechat.resume(out)
    last = sorted(p.name for p in (finished.folder / "checkpoints").iterdir())[-1]
    for name in ("adapter_model.safetensors", "state/weights.safetensors"):
        whole = finished.folder / "checkpoints" / last / name
        assert sha256(whole) == sha256(out / "checkpoints" / last / name)
    assert again.report.task == finished.report.task
    steps = [row["step"] for row in read_lines(out / "metrics.jsonl") if "loss" in row]
    assert steps == sorted(set(steps))


def test_another_recipe_does_not_touch_the_run(place: Path, finished: Run) -> None:
    before = sha256(finished.folder / "report.json")
    with pytest.raises(RunError, match="another recipe"):
        train(make_recipe(place, seed=1), finished.folder)
    assert sha256(finished.folder / "report.json") == before


def test_a_folder_with_other_things_is_refused(place: Path) -> None:
    other = place / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("years of work")
    with pytest.raises(RunError, match="not empty"):
        train(make_recipe(place), other)
    assert [p.name for p in other.iterdir()] == ["thesis.txt"]


def test_a_plan_trains_nothing_and_leaves_nothing(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plan = preview(make_recipe(place))
    assert plan.fits
    assert plan["steps"] > 0
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_does_not_fit_is_refused_with_the_number(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import timechat.stages.training.context as stage

    real = stage.plan_run

    def small(*arguments: Any) -> Plan:
        return replace(real(*arguments), fits=False, refusal="training needs about 9.9 GiB")

    monkeypatch.setattr(stage, "plan_run", small)
    with pytest.raises(PlanError, match=r"9\.9 GiB"):
        train(make_recipe(place), place / "unfit")
    assert not (place / "unfit").exists()


def test_compare_asks_the_same_again(finished: Run, place: Path) -> None:
    report = timechat.compare(finished.folder, out=place / "report-again")
    assert report.task.after == pytest.approx(finished.report.task.after)
    assert report.task.n == finished.report.task.n
    assert [check.name for check in report.checks] == [c.name for c in finished.report.checks]
    assert (place / "report-again" / "report.html").is_file()


def test_a_model_against_itself_changes_nothing(finished: Run, place: Path) -> None:
    report = timechat.compare(
        finished.folder,
        finished.folder,
        questions=finished.folder / "data" / "test.jsonl",
        out=place / "itself",
    )
    assert report.task.difference == 0
    assert report.retention.difference == 0
    assert report.verdict != "improved"


def test_chat_answers_from_the_run(finished: Run) -> None:
    from timechat.conversation import Message
    from timechat.engine.protocol import Sampling

    responder = timechat.chat(finished.folder)
    text = "".join(responder.reply([Message("user", "Hi")], Sampling(max_new_tokens=6)))
    assert isinstance(text, str)
    assert responder.ending is not None
