"""Rows, runs and other tools' files to a queue; judgements to rows and files; the terminal."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from timechat.cli.labels import work
from timechat.cli.main import main
from timechat.conversation import Conversation
from timechat.data.sources import open_sources
from timechat.errors import DataError, LedgerError
from timechat.ledger.annotation import Queue
from timechat.ledger.judging import Judgement
from timechat.recipe import Data, parse_recipe
from timechat.stages.annotating.annotate import measure_agreement, open_folder, reopen, suggest
from timechat.stages.annotating.collect import collect, settle, spreadsheet
from timechat.stages.annotating.exchange.argilla import write_records
from timechat.stages.annotating.exchange.labelstudio import write_tasks
from timechat.stages.preparing.prepare import prepare

SHARED = Path(__file__).parents[3].parent / "shared" / "data"


def write_rows(path: Path, rows: list[tuple[str, str]]) -> Path:
    lines = [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}],
         "group": f"g{n}"}
        for n, (q, a) in enumerate(rows)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture
def queue(tmp_path: Path) -> Queue:
    """Three answers to judge."""
    rows = write_rows(
        tmp_path / "rows.jsonl", [("When?", "At five."), ("Who?", "Ann."), ("?", "!")]
    )
    return open_folder(tmp_path / "labels", add=[rows]).queue


@pytest.fixture
def pairs(tmp_path: Path) -> Queue:
    """Two pairs to choose from, as TRL and as OpenAI write them."""
    path = tmp_path / "pairs.jsonl"
    openai = {
        "input": {"messages": [{"role": "user", "content": "Two?"}]},
        "preferred_output": [{"role": "assistant", "content": "good"}],
        "non_preferred_output": [{"role": "assistant", "content": "bad"}],
    }
    trl = {"prompt": "One?", "chosen": "yes", "rejected": "no", "preferred_output": None}
    del trl["preferred_output"]
    path.write_text(json.dumps(openai) + "\n")
    other = tmp_path / "trl.json"
    other.write_text(json.dumps([trl]))
    return open_folder(tmp_path / "pairs", add=[path, other]).queue


def say(queue: Queue, name: str, *verdicts: str) -> None:
    """One verdict an item, in order; `=text` corrects."""
    for item, verdict in zip(queue.items(), verdicts, strict=False):
        value = verdict[1:] if verdict.startswith("=") else None
        queue.answer(Judgement(item.id, name, "corrected" if value else verdict, value))


def test_what_was_judged_becomes_rows_that_prepare_reads(queue: Queue, tmp_path: Path) -> None:
    say(queue, "ann", "right", "=Ben.", "wrong")
    done = collect(queue, "rows", tmp_path / "out.jsonl")
    assert (done.written, done.left_out) == (2, {"wrong": 1})
    rows = [row.found for row in open_sources([str(tmp_path / "out.jsonl")], Data())[0].rows()]
    assert all(isinstance(row, Conversation) for row in rows)
    assert [row.reference for row in rows if isinstance(row, Conversation)] == ["At five.", "Ben."]
    assert [row.group for row in rows if isinstance(row, Conversation)] == ["g0", "g1"]


def test_a_correction_is_also_a_preference_pair(queue: Queue, tmp_path: Path) -> None:
    say(queue, "ann", "right", "=Ben.", "wrong")
    done = collect(queue, "pairs", tmp_path / "out.jsonl")
    assert done.left_out == {"not_corrected": 1, "wrong": 1}
    pair = json.loads((tmp_path / "out.jsonl").read_text())
    assert pair["preferred_output"] == [{"role": "assistant", "content": "Ben."}]
    assert pair["non_preferred_output"] == [{"role": "assistant", "content": "Ann."}]


def test_a_choice_becomes_a_pair_and_a_tie_is_left_out_by_name(
    pairs: Queue, tmp_path: Path
) -> None:
    say(pairs, "ann", "second", "tie")
    done = collect(pairs, "pairs", tmp_path / "out.jsonl")
    assert done.left_out == {"tie": 1}
    pair = json.loads((tmp_path / "out.jsonl").read_text())
    assert pair["preferred_output"][0]["content"] == "bad"


def test_more_than_half_must_agree(queue: Queue) -> None:
    say(queue, "ann", "right", "right", "=x")
    say(queue, "ben", "right", "wrong", "=x")
    say(queue, "cleo", "wrong", "skip", "=y")
    said = queue.by_item()
    settled = [settle(item, said[item.id]) for item in queue.items()]
    assert [(s.verdict, s.reason) for s in settled] == [
        ("right", ""), ("", "disagreement"), ("corrected", "")
    ]  # fmt: skip
    assert settled[2].text == "x"


def test_every_item_is_written_or_left_out_with_a_reason(queue: Queue, tmp_path: Path) -> None:
    say(queue, "ann", "right", "skip")
    done = collect(queue, "rows", tmp_path / "out.jsonl")
    left = [json.loads(line) for line in (tmp_path / "out.left-out.jsonl").read_text().splitlines()]
    assert [row["reason"] for row in left] == ["skipped", "not_judged"]
    assert done.written + len(left) == done.items


def test_labels_are_seen_and_become_a_closed_set(tmp_path: Path) -> None:
    rows = [(f"text {n}", "good" if n % 2 else "bad") for n in range(30)]
    opened = open_folder(tmp_path / "l", add=[write_rows(tmp_path / "r.jsonl", rows)])
    assert opened.queue.labels == ("bad", "good")
    say(opened.queue, "ann", *["right"] * 30)
    say(opened.queue, "ben", "=good", *["right"] * 29)
    found = measure_agreement(opened.queue)
    assert found[0].observed == pytest.approx(29 / 30)
    assert reopen(tmp_path / "l").labels == ("bad", "good")


def test_an_entry_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text(json.dumps([{"data": {"text": "x"}}, {"data": {"image": "x.png"}}]))
    with pytest.raises(DataError, match=r"entry 2 cannot be read: no prompt among image"):
        open_folder(tmp_path / "q", add=[path])
    assert not (tmp_path / "q").exists()


def test_formulas_in_cells_are_made_text(tmp_path: Path) -> None:
    evil = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", " =1", '=cmd|"/c calc"!A0']
    rows = write_rows(tmp_path / "r.jsonl", [(text, text) for text in evil])
    queue = open_folder(tmp_path / "q", add=[rows]).queue
    say(queue, "=ann", *["wrong"] * len(evil))
    records = list(csv.reader(io.StringIO(spreadsheet(queue))))
    assert len(records) == 1 + len(evil)
    for record in records[1:]:
        for name, cell in zip(records[0], record, strict=True):
            assert not cell.lstrip().startswith(("=", "+", "-", "@")), name


def test_a_run_is_chosen_from_blindly_before_against_after(tmp_path: Path) -> None:
    for side, answer in (("before", "dunno"), ("after", "Five.")):
        folder = tmp_path / "run" / "evals" / side
        folder.mkdir(parents=True)
        rows = [
            {"id": "a", "group": "g", "question": [{"role": "user", "content": "When?"}],
             "reference": "Five.", "answer": answer},
            {"id": "b", "group": "g", "question": [{"role": "user", "content": "Same?"}],
             "reference": "Yes.", "answer": "Yes."},
        ]  # fmt: skip
        (folder / "task.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    queue = open_folder(tmp_path / "run").queue
    assert [(i.task, [a.origin for a in i.answers]) for i in queue.items()] == [
        ("choose", ["before", "after"])
    ]


def test_a_prepared_folder_is_annotated_in_place_and_stays_prepared(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "r.jsonl", [(f"question {n}", f"answer {n}") for n in range(20)])
    data = parse_recipe({"data": {"train": [str(rows)]}}).data
    prepare(data, tmp_path / "p", lambda _: None)
    assert len(open_folder(tmp_path / "p").queue.items()) == 20
    assert open_folder(tmp_path / "p").added == 0
    with pytest.raises(DataError, match=r"ledger\.db"):
        prepare(data, tmp_path / "p", lambda _: None)


def test_suggestions_come_from_a_model_and_only_for_what_nobody_judged(
    queue: Queue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from timechat.engine.protocol import Ending
    from timechat.stages.annotating import annotate

    class Parrot:
        ending = Ending.STOP

        def reply(self, prompt: Any, _: Any) -> list[str]:
            return [prompt[-1].content.upper()]

    monkeypatch.setattr(annotate, "open_responder", lambda *_: Parrot())
    say(queue, "ann", "right")
    assert suggest(queue, "parrot") == 2
    assert suggest(queue, "parrot") == 0
    assert [[s.value for s in item.suggestions] for item in queue.items()] == [[], ["WHO?"], ["?"]]
    say(queue, "ann", "right", "=WHO?")
    collect(queue, "rows", tmp_path / "o.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert rows[1]["tags"] == ["annotation:corrected", "suggested:parrot"]


@pytest.mark.slow
def test_the_starter_suggests_and_what_is_taken_over_is_marked_as_its_own(tmp_path: Path) -> None:
    rows = [("What is the capital of France?", "Lyon."), ("What is 2 + 2? Give the number.", "5")]
    write_rows(tmp_path / "r.jsonl", rows)
    folder = str(tmp_path / "q")
    command = [sys.executable, "-m", "timechat", "annotate", folder, "--by", "ann",
               "--add", str(tmp_path / "r.jsonl"), "--suggest", "starter", "--json"]  # fmt: skip
    # Takes the first suggestion over, says of the second answer that it is wrong.
    done = subprocess.run(
        command, input="s\nn\n", capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["mine"] == 2
    queue = reopen(tmp_path / "q")
    first, second = queue.items()
    assert [s.model for s in (*first.suggestions, *second.suggestions)] == ["starter", "starter"]
    assert "Paris" in first.suggestions[0].value
    collect(queue, "rows", tmp_path / "o.jsonl")
    (row,) = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert row["messages"][-1]["content"] == first.suggestions[0].value
    assert row["tags"] == ["annotation:corrected", "suggested:starter"]


def type_in(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))


def test_the_terminal_keeps_each_verdict_at_once(
    queue: Queue, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    type_in(monkeypatch, "x\ny\nn\nu\nc\nBen.\n")
    progress = work(queue, "ann")
    assert (progress.mine, progress.left) == (2, 1)
    said = [(j.verdict, j.value) for j in queue.judgements()]
    assert said == [("right", None), ("corrected", "Ben.")]
    shown = capsys.readouterr()
    assert "no key 'x'" in shown.err
    assert shown.out == ""


def test_the_terminal_never_names_whose_answer_it_is(
    pairs: Queue, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    type_in(monkeypatch, "a\nb\n")
    items = pairs.items()
    work(pairs, "ann")
    shown = capsys.readouterr().err
    assert "chosen" not in shown
    assert "rejected" not in shown
    for item, said, position in zip(items, pairs.judgements(), (0, 1), strict=True):
        assert said.verdict == ("first", "second")[item.shown_order("ann")[position]]


def test_in_the_terminal_the_better_answer_is_ticked_behind_its_key(
    pairs: Queue, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    type_in(monkeypatch, "a x\nt c\na sc\nb\n")
    work(pairs, "ann")
    assert [j.ticks for j in pairs.judgements()] == [("shorter", "clearer"), ()]
    shown = capsys.readouterr().err
    assert "no tick 'x' (c is clearer, a is more accurate, r is more relevant, s is short" in shown
    assert "no key 't c'" in shown


def test_a_control_sequence_in_a_row_does_not_reach_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write_rows(tmp_path / "r.jsonl", [("\x1b]0;owned\x07 [red]x[/red]", "\x1b[2Jgone")])
    type_in(monkeypatch, "")
    work(open_folder(tmp_path / "q", add=[rows]).queue, "ann")
    shown = capsys.readouterr().err
    assert "\x1b]0" not in shown
    assert "\x1b[2J" not in shown
    assert "[red]x[/red]" in shown


def test_the_command_prints_one_line_of_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write_rows(tmp_path / "r.jsonl", [("When?", "At five.")])
    type_in(monkeypatch, "y\n")
    folder = str(tmp_path / "q")
    with pytest.raises(SystemExit) as caught:
        main(["annotate", folder, "--add", str(rows), "--by", "ann", "--json"])
    assert caught.value.code == 0
    assert json.loads(capsys.readouterr().out) == {"items": 1, "finished": 1, "mine": 1, "left": 0}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["annotate", "nowhere"], "--add FILE"),
        (["annotate", ".", "--by", " "], "printable"),
        (["agreement", "nowhere"], "begin with"),
        (["collect", "nowhere", "--out", "x.jsonl"], "begin with"),
    ],
)
def test_a_mistake_ends_with_status_2_and_leaves_nothing(
    arguments: list[str],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert expected in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_shape_or_ending_is_refused_by_name(queue: Queue, tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="did you mean 'pairs'"):
        collect(queue, "pair", tmp_path / "x.jsonl")
    with pytest.raises(LedgerError, match=r"ends in \.csv"):
        collect(queue, "csv", tmp_path / "x.jsonl")
    with pytest.raises(LedgerError, match=r"nothing to write as rows .3 not_judged"):
        collect(queue, "rows", tmp_path / "x.jsonl")
    assert not (tmp_path / "x.jsonl").exists()


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data")
def test_preference_data_from_the_wild_is_read(tmp_path: Path) -> None:
    opened = open_folder(tmp_path / "q", add=[SHARED / "formats" / "dpo_en_demo.json"])
    assert opened.added > 250
    assert {item.task for item in opened.queue.items()} == {"choose"}
    assert write_tasks(opened.queue)[0]["data"]["messages"]
    assert write_records(opened.queue)[0]["fields"]["prompt"]
