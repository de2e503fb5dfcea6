"""lm-evaluation-harness beside our measures: the same scores as its own model gives, offline.

Importing the harness alone takes many seconds, so what needs it is slow.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import write_base

from timechat.errors import DataError, RecipeError
from timechat.model.load import Loaded, load, resolve
from timechat.records import Score
from timechat.stages.comparing import harness
from timechat.stages.comparing.compare import compare
from timechat.stages.comparing.contest import Options
from timechat.stages.comparing.harness import Asked, check_tasks, weigh_harness
from timechat.stages.watch import Watcher
from timechat.store.files import read_json, write_lines

COLOURS = ("red", "green", "blue", "a long shade of grey")
CHOOSE = """
task: doors_choose
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "What colour is door {{{{n}}}}?\\nAnswer:"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: gold
metric_list:
  - metric: acc
  - metric: acc_norm
"""
SAY = """
task: doors_say
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: generate_until
doc_to_text: "Door {{{{n}}}}:"
doc_to_target: "{{{{choices[gold]}}}}"
generation_kwargs: {{until: ["e"], max_gen_toks: 12, do_sample: false}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""
READ = """
task: doors_read
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "Every door is green, and door {{{{n}}}} is {{{{choices[gold]}}}}."
metric_list: [{{metric: word_perplexity}}, {{metric: bits_per_byte}}]
"""


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Three tasks with their documents in a file beside them; nothing may be fetched."""
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = tmp_path / "doors.jsonl"
    write_lines(rows, [{"n": i, "choices": COLOURS, "gold": i % 4} for i in range(24)])
    files: list[str] = []
    for name, text in (("choose", CHOOSE), ("say", SAY), ("read", READ)):
        file = tmp_path / "tasks" / f"{name}.yaml"
        file.parent.mkdir(exist_ok=True)
        file.write_text(text.format(rows=rows))
        files.append(str(file))
    return files


def by_harness(loaded: Loaded, tasks: list[str]) -> dict[str, Any]:
    """What the harness gives with its own class for transformers models."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    theirs = HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=4)
    found = harness._load(tasks)
    given = simple_evaluate(theirs, tasks=list(found.values()), bootstrap_iters=0)
    assert given is not None
    return dict(given)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the harness's own imports and settings
def test_a_task_gets_the_score_that_the_harness_gives_the_same_model(
    tmp_path: Path, tasks: list[str]
) -> None:
    pytest.importorskip("lm_eval")
    loaded = load(resolve(str(write_base(tmp_path / "base"))))
    loaded.model.float()  # in bfloat16 two orders of the same sums differ in the fourth digit
    ours = harness.ask_harness(loaded, tasks, Watcher(), "ours")
    theirs = by_harness(loaded, tasks)
    assert set(ours.figures) == {"doors_choose", "doors_say", "doors_read"}
    for task, figures in ours.figures.items():
        for name, value in figures.items():
            assert value == pytest.approx(theirs["results"][task][f"{name},none"], rel=1e-5), name
    assert {"acc", "acc_norm"} <= set(ours.figures["doors_choose"])
    assert ours.figures["doors_choose"]["acc"] not in (0.0, 1.0)
    # Each document by itself, not only their mean.
    right = {s["doc_id"]: s["acc"] for s in theirs["samples"]["doors_choose"]}
    assert [s.value for s in ours.scores["doors_choose: acc"]] == [right[i] for i in sorted(right)]
    assert ours.cut == 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("small_suite")
def test_compare_pairs_the_tasks_of_two_models_and_shows_them(
    tmp_path: Path, tasks: list[str]
) -> None:
    pytest.importorskip("lm_eval")
    models = [str(write_base(tmp_path / name, seed=seed)) for name, seed in (("a", 0), ("b", 1))]
    questions = tmp_path / "questions.jsonl"
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    questions.write_text(json.dumps({"messages": turns}) + "\n")
    options = Options(harness=(tasks[0],))
    _, out = compare(models, questions, "", tmp_path / "out", Watcher(), options)
    report = read_json(out / "report.json")
    found = {m["name"]: m for m in report["measures"]}["harness, doors_choose: acc"]
    assert found["n"] == 24
    for side in ("before", "after"):
        told = report["details"]["harness"][side]["doors_choose"]["acc"]
        assert found[side] == pytest.approx(told)
    assert found["verdict"] == "undecided", "24 documents prove nothing"
    assert "harness, doors_choose: acc" in (out / "report.html").read_text()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_task_that_cannot_be_loaded_is_named(tmp_path: Path, tasks: list[str]) -> None:
    pytest.importorskip("lm_eval")
    (tmp_path / "doors.jsonl").unlink()
    loaded = load(resolve(str(write_base(tmp_path / "base"))))
    with pytest.raises(DataError, match="cannot load doors_choose"):
        harness.ask_harness(loaded, tasks[:1], Watcher(), "ours")


def test_without_the_harness_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"timechat\[harness\]"):
        check_tasks(["arc_easy"])


def test_a_file_that_is_no_task_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "find_spec", lambda name: name)
    (tmp_path / "x.yaml").write_text("group: x")
    with pytest.raises(RecipeError, match="names no task"):
        check_tasks([str(tmp_path / "x.yaml")])
    with pytest.raises(RecipeError, match="cannot be read"):
        check_tasks([str(tmp_path / "y.yaml")])


def test_a_loss_on_a_task_is_named_by_the_same_margin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "version", lambda name: "0.4.13")

    def asked(right: int, cut: int = 0) -> Asked:
        scores = [Score(f"t {i}", f"t {i}", float(i < right), "acc") for i in range(200)]
        nats = [Score(f"t {i}", f"t {i}", 3.0 - right / 100, "ppl") for i in range(200)]
        return Asked(
            {"t": {"acc": right / 200}},
            {"t: acc": scores, "t: ppl": nats},
            {"t: acc": True, "t: ppl": False},
            cut,
        )

    measures, details, findings = weigh_harness(asked(150), asked(90, cut=3), 0.05)
    assert [m.verdict for m in measures] == ["lost", "lost"]
    assert measures[1].difference == pytest.approx(-0.6), "lower is better: the sign is turned"
    assert details["after"] == {"t": {"acc": 0.45}}
    assert findings[0] == "harness, t: acc was lost"
    assert "3 requests of the harness were cut" in findings[-1]
