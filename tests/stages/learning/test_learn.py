"""A run that learns from corrections: versions, the way back, kills, and what is refused."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import part_of_suite
from safetensors.torch import load_file
from test_train import make_recipe

from timechat.cli.main import main
from timechat.conversation import Message
from timechat.errors import LedgerError, RunError, StoppedError
from timechat.ledger.judging import Answer, Item, Judgement
from timechat.model.load import load, resolve
from timechat.model.method import begin_again
from timechat.recipe import Lora
from timechat.records import StepRecord
from timechat.stages.annotating.annotate import open_folder
from timechat.stages.learning.learn import learn
from timechat.stages.runs.listing import list_runs, remove
from timechat.stages.runs.versions import (
    Version,
    find_offered,
    go_back,
    in_use,
    take_offered,
    version_in_use,
    versions,
)
from timechat.stages.training.train import Run, train
from timechat.stages.watch import Watcher
from timechat.store.files import read_json, read_lines, sha256, write_json, write_lines

OTHERS = ("One wording?", "Two wordings?", "Three wordings?")


@pytest.fixture(scope="module", autouse=True)
def small_suite() -> Generator[None]:
    with part_of_suite(9, 9):
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("learn")


@pytest.fixture(scope="module")
def finished(place: Path) -> Run:
    return train(make_recipe(place, epochs=2, validations=1), place / "shop")


@pytest.fixture
def run(finished: Run, tmp_path: Path) -> Path:
    """A copy of a finished run, nothing corrected yet."""
    copy = tmp_path / "shop"
    shutil.copytree(finished.folder, copy, symlinks=True)
    return copy


@dataclass(frozen=True)
class Learned:
    """A lesson that was taken once for several tests, with what they look at."""

    run: Path
    version: Version
    before: dict[str, str]
    labels: list[str]


@pytest.fixture(scope="module")
def learned(finished: Run, tmp_path_factory: pytest.TempPathFactory) -> Learned:
    run = tmp_path_factory.mktemp("learned") / "shop"
    shutil.copytree(finished.folder, run, symlinks=True)
    rows = [{"question": f"Is {i} even?", "answer": "Yes", "wrong": ["No"]} for i in (2, 4, 6)]
    write_lines(run.parent / "kept.jsonl", rows)
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe["evaluate"] = recipe.get("evaluate", {}) | {"retention": ["../kept.jsonl"]}
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    put_right(run, "What colour is the gate?", "It is violet.", *OTHERS)
    put_right(run, "What colour is the old fence over there?", "It is golden.")
    before = fingerprint(run)
    labels: list[str] = []

    class Listening(Watcher):
        def track(self, label: str, total: int) -> Any:
            labels.append(label)
            return lambda done: None

    return Learned(run, learn(run, Listening()), before, labels)


def put_right(run: Path, question: str, answer: str, *others: str, wrong: str = "Hm.") -> None:
    """What the chat page does when somebody saves a correction."""
    said = (Judgement(0, "ann", "corrected", answer),)
    first = Item(
        "judge", (Message("user", question),), (Answer(wrong, "shop"),),
        group=f"chat {question}", source="chat", said=said,
    )  # fmt: skip
    rest = [
        Item("judge", (Message("user", o),), (), group=first.group, source="chat", said=said)
        for o in others
    ]
    open_folder(run).queue.add([first, *rest])


def leave_version(run: Path, number: int = 1, decision: str = "offered") -> Version:
    """A version as `learn` leaves it, without the training."""
    parent = in_use(run)
    checkpoint = f"learned/{number:03d}/checkpoints/step-000009"
    shutil.copytree(run / parent, run / checkpoint)
    sets = {"corrections": {"right_before": 0, "right_after": 1, "n": 1, "questions": 1,
                            "made_by_rule": 0, "verdict": "learned"}}  # fmt: skip
    content: dict[str, Any] = {
        "number": number, "parent": parent, "checkpoint": checkpoint, "decision": decision,
        "corrections": "d", "num_corrections": 1, "seed": 0, "reasons": [], "sets": sets,
        "contradicted": [], "samples": [],
    }  # fmt: skip
    write_json(run / "learned" / f"{number:03d}" / "version.json", content)
    return next(v for v in versions(run) if v.number == number)


class Stopping(Watcher):
    def __init__(self, after: int) -> None:
        self.after = after

    def stepped(self, record: StepRecord, total: int) -> None:
        if record.step == self.after:
            raise KeyboardInterrupt


def fingerprint(run: Path) -> dict[str, str]:
    """Everything of a run that answers, and whose it is."""
    files = [p for p in sorted(run.rglob("*")) if p.is_file() and "learned" not in p.parts]
    return {p.name: sha256(p) for p in files if p.suffix == ".safetensors"} | {"best": in_use(run)}


def test_a_version_is_made_and_what_answers_stays_as_it_is(learned: Learned) -> None:
    run, version = learned.run, learned.version
    assert fingerprint(run) == learned.before
    sets = version.content["sets"]
    assert sets["corrections"]["n"] == 2
    assert sets["retention"]["n"] > 50
    assert sets["earlier"]["n"] > 0
    assert sets["own"]["n"] == 3
    assert sets["own"]["name"] == "ability on your own retention questions"
    asked = {row["item"] for row in read_lines(run / "learned" / "001" / "evals" / "choices.jsonl")}
    assert {f"own:kept.jsonl:{i}" for i in (1, 2, 3)} <= asked
    assert (version.decision == "offered") == (not version.content["reasons"])
    steps = [r for r in read_lines(run / "learned" / "001" / "metrics.jsonl") if "loss" in r]
    assert steps[-1]["loss"] < steps[0]["loss"], "it learns its corrections"
    assert list_runs(run)[0].state == "finished"
    assert not (run / "learned" / "progress.json").exists()


def test_what_is_checked_is_never_trained(learned: Learned) -> None:
    rows = read_lines(learned.run / "learned" / "001" / "rows.jsonl")
    trained = {row["messages"][-2]["content"] for row in rows}
    checked = {row["question"] for row in learned.version.content["samples"]}
    assert OTHERS[0] in checked
    assert {"What colour is the gate?", OTHERS[1], OTHERS[2]} <= trained
    assert not checked & trained


def test_the_result_says_how_many_questions_a_rule_made(learned: Learned) -> None:
    told = learned.version.content["sets"]["corrections"]
    made = [row for row in learned.version.content["samples"] if row["made_by_rule"]]
    assert told["made_by_rule"] == len(made) == 2
    assert {row["asked"] for row in made} == {"What colour is the old fence over there?"}


def test_answers_of_the_model_in_use_are_not_asked_again(learned: Learned) -> None:
    assert [label for label in learned.labels if label.startswith("the model in use")] == [
        "the model in use: the corrections in other words",
        # The file may say something else than when the run was trained.
        "the model in use: 3 retention questions",
    ]


def test_the_same_corrections_are_not_learned_twice(learned: Learned) -> None:
    with pytest.raises(RunError, match="same 2 corrections"):
        learn(learned.run)


def test_a_learned_version_is_one_adapter_on_the_same_base(learned: Learned) -> None:
    run, version = learned.run, learned.version
    first, second = run / in_use(run), run / version.checkpoint
    configs = [read_json(folder / "adapter_config.json") for folder in (first, second)]
    assert configs[0]["base_model_name_or_path"] == configs[1]["base_model_name_or_path"]
    assert configs[0]["r"] == configs[1]["r"]
    old, new = (load_file(f / "adapter_model.safetensors") for f in (first, second))
    assert old.keys() == new.keys()
    assert any(not torch.equal(old[name], new[name]) for name in old)
    assert load(resolve(str(second))).model is not None


def test_without_a_correction_there_is_nothing_to_learn(run: Path) -> None:
    with pytest.raises(LedgerError, match="no annotations"):
        learn(run)
    open_folder(run)
    with pytest.raises(LedgerError, match="no correction to learn from"):
        learn(run)
    assert not (run / "learned").exists()


def test_a_lesson_that_was_stopped_goes_on_to_the_same_bytes(run: Path, tmp_path: Path) -> None:
    put_right(run, "What colour is the gate?", "It is violet.", "And the gate?")
    other = tmp_path / "uninterrupted" / "shop"
    shutil.copytree(run, other, symlinks=True)
    with pytest.raises(StoppedError, match="goes on") as stopped:
        learn(run, Stopping(after=14))
    assert stopped.value.exit_status == 130
    assert versions(run) == []
    assert in_use(run).startswith("checkpoints/")
    whole, again = learn(other), learn(run)
    name = "adapter_model.safetensors"
    assert sha256(other / whole.checkpoint / name) == sha256(run / again.checkpoint / name)


@pytest.mark.slow
def test_a_kill_in_the_middle_loses_nothing_and_leaves_what_answers(run: Path) -> None:
    put_right(run, "What colour is the gate?", "It is violet.", "And the gate?")
    before = fingerprint(run)
    child = subprocess.Popen(
        [sys.executable, "-m", "timechat", "learn", str(run)], stderr=subprocess.DEVNULL
    )
    log = run / "learned" / "001" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (log.is_file() and log.read_text().count('"loss"') >= 3):
        assert time.monotonic() < deadline
        assert child.poll() is None
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert fingerprint(run) == before
    assert versions(run) == []
    assert len(open_folder(run).queue.judgements()) == 2
    version = learn(run)
    assert version.number == 1, "the same lesson goes on"
    assert fingerprint(run) == before


def test_a_version_is_taken_and_given_back_and_taken_again(run: Path) -> None:
    trained = in_use(run)
    version = leave_version(run)
    assert find_offered(run) == version
    assert take_offered(run).number == 1
    assert in_use(run) == version.checkpoint
    assert resolve(str(run)).adapter == (run / version.checkpoint).resolve()
    assert find_offered(run) is None
    assert go_back(run) == trained
    assert in_use(run) == trained
    assert version_in_use(run) is None
    assert find_offered(run) == version
    events = [row["event"] for row in read_lines(run / "history.jsonl")]
    assert events[-2:] == ["switched", "switched"]


def test_what_was_refused_or_belongs_to_another_version_is_not_taken(run: Path) -> None:
    leave_version(run, 1, "refused")
    with pytest.raises(RunError, match="no version to take"):
        take_offered(run)
    leave_version(run, 2)
    take_offered(run)
    with pytest.raises(RunError, match="no version to take"):
        take_offered(run)
    go_back(run)
    with pytest.raises(RunError, match="nothing to go back from"):
        go_back(run)


def test_a_damaged_version_is_not_taken(run: Path) -> None:
    version = leave_version(run)
    file = run / version.checkpoint / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    trained = in_use(run)
    with pytest.raises(Exception, match="damaged"):
        take_offered(run)
    assert in_use(run) == trained


def test_the_checkpoint_that_a_version_goes_back_to_is_not_deleted(run: Path) -> None:
    parent = Path(in_use(run)).name.partition("-strength")[0]
    leave_version(run)
    take_offered(run)
    with pytest.raises(RunError, match="goes back to"):
        remove(f"{run}@{parent}")


def test_the_command_speaks_json_and_exits_as_it_should(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("timechat.cli.signals.install", lambda: None)

    def call(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["learn", str(run), *words])
        told = capsys.readouterr()
        return int(ended.value.code or 0), told.out, told.err

    code, _, said = call("--switch")
    assert (code, "no version to take" in said) == (2, True)
    assert call("--switch", "--back")[0] == 2
    leave_version(run)
    code, out, _ = call("--switch", "--json")
    assert code == 0
    assert json.loads(out)["answers_from"].startswith("learned/001")
    assert json.loads(call("--back", "--json")[1])["answers_from"].startswith("checkpoints/")


def test_learning_again_is_held_to_the_model_with_its_adapter(run: Path) -> None:
    loaded = load(resolve(str(run)))
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        before = loaded.model(ids).logits
        change = begin_again(loaded.model, Lora())
        for parameter in loaded.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
        assert not torch.equal(loaded.model(ids).logits, before)
        with change.base():
            assert torch.equal(loaded.model(ids).logits, before)
        assert not torch.equal(loaded.model(ids).logits, before)
