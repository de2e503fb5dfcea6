"""What goes to Label Studio and Argilla: as they want it, and back again unchanged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from test_annotate import write_rows

from timechat.ledger.annotation import Queue
from timechat.ledger.judging import Judgement, Suggestion
from timechat.stages.annotating.annotate import open_folder
from timechat.stages.annotating.collect import collect
from timechat.stages.annotating.exchange.argilla import write_records
from timechat.stages.annotating.exchange.labelstudio import write_config, write_tasks

KINDS = ("queue", "pairs", "labels")
TAGS = {"choices": "Choices", "textarea": "TextArea", "pairwise": "Pairwise"}


def make(kind: str, folder: Path) -> Queue:
    """A queue of this kind on which two people and a model have said everything one can say."""
    path = folder / f"{kind}.jsonl"
    if kind == "pairs":
        pairs = [{"prompt": f"{n}?", "chosen": f"yes {n}", "rejected": "no"} for n in range(4)]
        path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    elif kind == "labels":
        write_rows(path, [(f"text {n}", "right" if n % 2 else "bad") for n in range(30)])
    else:
        write_rows(path, [("When?", "At five."), ("Who?", "Ann."), ("?", "!")])
    queue = open_folder(folder / kind, add=[path]).queue
    verdicts = {
        "pairs": ("first", "second", "tie", "neither"),
        "labels": ("=right", "right", "wrong"),
        "queue": ("right", "=Ben,\nsaid she", "wrong"),
    }[kind]
    say(queue, "ann", *verdicts)
    if kind == "pairs":
        ticked = Judgement(queue.items()[0].id, "cleo", "first", ticks=("clearer", "shorter"))
        queue.answer(ticked)
    say(queue, "ben@x.org", "skip", {"pairs": "tie", "labels": "=bad"}.get(kind, "right"))
    if kind != "pairs":
        value = "bad" if kind == "labels" else "Ben."
        queue.suggest(queue.items()[1].id, Suggestion("starter", value))
    return queue


def say(queue: Queue, name: str, *verdicts: str) -> None:
    """One verdict an item, in order; `=text` corrects."""
    for item, verdict in zip(queue.items(), verdicts, strict=False):
        value = verdict[1:] if verdict.startswith("=") else None
        queue.answer(Judgement(item.id, name, "corrected" if value else verdict, value))


@pytest.mark.parametrize("shape", ["label-studio", "argilla"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_goes_out_in_another_tools_shape_comes_back_the_same(
    shape: str, kind: str, tmp_path: Path
) -> None:
    queue = make(kind, tmp_path)
    out = tmp_path / "out.json"
    collect(queue, shape, out)
    back = open_folder(tmp_path / "back", add=[out], labels=queue.labels).queue
    expected = told(queue)
    if (shape, kind) == ("label-studio", "pairs"):
        # Its pairwise result knows no "neither": documented, and comes back as a tie.
        expected = json.loads(json.dumps(expected).replace('"neither"', '"tie"'))
    assert json.loads(json.dumps(told(back))) == json.loads(json.dumps(expected))
    # And into the queue that it came from: nothing new.
    assert queue.add(back.items()) == 0
    assert open_folder(tmp_path / "back", add=[out]).added == 0


def told(queue: Queue) -> list[Any]:
    said = queue.by_item()
    return [
        (item.task, [m.to_dict() for m in item.prompt], [a.text for a in item.answers],
         item.row_id, item.group, [(s.model, s.value) for s in item.suggestions],
         [(j.annotator, j.verdict, j.value, j.created_ms, j.ticks) for j in said.get(item.id, [])])
        for item in queue.items()
    ]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_each_result_names_controls_and_choices_that_the_interface_has(
    kind: str, tmp_path: Path
) -> None:
    """The rules of label-studio-sdk 2.1's `LabelInterface`, which are applied themselves below."""
    queue = make(kind, tmp_path)
    config = ElementTree.fromstring(write_config(queue))
    elements = {element.get("name"): element for element in config if element.get("name")}
    tasks = write_tasks(queue)
    for task in tasks:
        for element in elements.values():
            shown = element.get("value")
            assert shown is None or task["data"][shown.removeprefix("$")]
    results = [part for task in tasks for made in (*task["annotations"], *task["predictions"])
               for part in made["result"]]  # fmt: skip
    assert len(results) >= 2
    for part in results:
        control = elements[part["from_name"]]
        assert control.tag == TAGS[part["type"]]
        assert part["to_name"] in elements
        assert part["to_name"] in str(control.get("toName")).split(",")
        options = {choice.get("value") for choice in control}
        assert set(part["value"].get("choices", ())) <= options


@pytest.mark.parametrize("kind", KINDS)
def test_label_studios_own_sdk_accepts_every_task(kind: str, tmp_path: Path) -> None:
    interface = pytest.importorskip("label_studio_sdk.label_interface").LabelInterface
    queue = make(kind, tmp_path)
    shown = interface(write_config(queue))
    shown.validate()
    for task in write_tasks(queue):
        assert shown.validate_task({"data": task["data"]})
        for made in (*task["annotations"], *task["predictions"]):
            assert shown.validate_prediction(made, return_errors=True) == []


@pytest.mark.parametrize("kind", KINDS)
def test_argillas_own_client_reads_every_record_and_gives_it_back(
    kind: str, tmp_path: Path
) -> None:
    argilla = pytest.importorskip("argilla")
    for record in write_records(make(kind, tmp_path)):
        back = argilla.Record.from_dict(record).to_dict()
        assert {key: back[key] for key in record} == record


def test_label_studios_documented_task_is_read(tmp_path: Path) -> None:
    task = {
        "id": 1,
        "created_at": "2021-03-09T21:52:49.513742Z",
        "data": {"text": "My card is lost"},
        "annotations": [
            {
                "id": "1001", "completed_by": 10, "was_cancelled": False, "lead_time": 4.288,
                "created_at": "2021-03-09T22:16:08.728353Z",
                "result": [{"from_name": "label", "id": "Dx", "to_name": "text", "type": "choices",
                            "value": {"choices": ["lost_card"]}}],
            }
        ],
        "predictions": [
            {"model_version": "model 1", "score": 0.9, "result": [
                {"from_name": "label", "to_name": "text", "type": "choices",
                 "value": {"choices": ["card_arrival"]}}]}
        ],
    }  # fmt: skip
    (tmp_path / "t.json").write_text(json.dumps([task]))
    queue = open_folder(tmp_path / "q", add=[tmp_path / "t.json"]).queue
    item, said = queue.items()[0], queue.judgements()[0]
    assert (item.answers, item.suggestions[0].model) == ((), "model 1")
    assert (said.annotator, said.verdict, said.value) == ("user 10", "corrected", "lost_card")
    assert (said.seconds, said.created_ms) == (4.288, 1615328168728)


def test_a_config_for_label_studio_escapes_its_labels(tmp_path: Path) -> None:
    rows = [(f"text {n}", 'a "b" <c> & d' if n % 2 else "e") for n in range(30)]
    queue = open_folder(tmp_path / "l", add=[write_rows(tmp_path / "r.jsonl", rows)]).queue
    root = ElementTree.fromstring(write_config(queue))
    shown = [choice.get("value") for choice in root.iter("Choice")]
    assert shown == ['a "b" <c> & d', "e", "wrong"]
