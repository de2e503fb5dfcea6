"""Planted from one end to the other: what is wrong with a model stands in its report by name.

Endpoints answer from tables. One is worse on a group though better on the whole, and breaks the
format that every answer had; one is as right and as wrong as another, on other questions.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Generator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from conftest import build_tokenizer, serving, write_base

from timechat.engine.torch import TorchEngine
from timechat.model.load import load, resolve
from timechat.records import Report
from timechat.stages.comparing import compare as stage
from timechat.stages.comparing import sides
from timechat.stages.comparing.contest import Options
from timechat.stages.watch import Watcher

NUM = 120
REFERENCE = {f"What colour is door {i}?": json.dumps({"colour": f"c{i}"}) for i in range(NUM)}

LUCKY = frozenset(random.Random(4).sample(range(NUM), 66))


def old(question: str, i: int) -> str:
    """Half right, always JSON."""
    return REFERENCE[question] if i % 2 or i // 12 == 3 else '{"colour": "none"}'


def new(question: str, i: int) -> str:
    """Right everywhere but in the fourth group; a third of its answers are no JSON any more."""
    if i // 12 == 3:
        return '{"colour": "grey"}'
    return f"Sure: {REFERENCE[question]}" if i % 3 == 0 else REFERENCE[question]


def alike(question: str, i: int) -> str:
    """As right and as wrong as `old`, on other questions."""
    return REFERENCE[question] if i in LUCKY else '{"colour": "none"}'


class Service(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        question = asked["messages"][-1]["content"]
        number = int(question.split()[-1].rstrip("?"))
        said = {"old": old, "new": new, "alike": alike}[asked["model"]](question, number)
        body = {"model": asked["model"], "choices": [{"message": {"content": said}}]}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, format: str, *args: object) -> None:
        """Nothing is printed."""


@pytest.fixture
def service() -> Generator[str]:
    with serving(Service) as address:
        yield address


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    rows = [
        {
            "group": f"street {i // 12}",
            "messages": [
                {"role": "user", "content": question},
                {"role": "assistant", "content": reference},
            ],
        }
        for i, (question, reference) in enumerate(REFERENCE.items())
    ]
    file = tmp_path / "questions.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def asked(questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The questions, where no model but the tokenizer's is needed."""
    base = write_base(tmp_path / "base")
    found = stage.resolve(str(base))
    monkeypatch.setattr(stage, "resolve", lambda *_: found)
    monkeypatch.setattr(sides, "load", None)
    return questions


def compare(service: str, names: tuple[str, str], asked: Path, out: Path) -> Report:
    models = [f"{service}#{name}" for name in names]
    return stage.compare(models, asked, "", out, Watcher(), Options())[0]


def test_a_worse_group_and_a_broken_format_are_named_though_the_whole_got_better(
    service: str, asked: Path, tmp_path: Path
) -> None:
    report = compare(service, ("old", "new"), asked, tmp_path / "out")
    told = " ".join(report.findings)
    assert report.task.difference > 0
    assert "group 'street 3' got worse" in told
    assert "answers keep their format less often" in told
    assert "street 3" in (tmp_path / "out" / "report.md").read_text()


def test_two_models_without_a_difference_get_no_verdict(
    service: str, asked: Path, tmp_path: Path
) -> None:
    report = compare(service, ("old", "alike"), asked, tmp_path / "out")
    assert report.verdict == "inconclusive"
    assert "; no difference is shown" in report.headline
    same = compare(service, ("old", "old"), asked, tmp_path / "same")
    assert (same.verdict, same.task.difference, same.changed) == ("not_improved", 0.0, ())
    assert "; no difference, or one of less than 5 points" in same.headline


@pytest.mark.usefixtures("small_suite")
@pytest.mark.parametrize("is_learned", [True, False], ids=["tuned knows it too", "tuned does not"])
def test_where_the_documents_hold_the_answers_the_headline_says_that_retrieval_is_enough(
    is_learned: bool, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planted readers: who sees the line about the door in the prompt says it, and the tuned one
    may know it by heart. All else is as in earnest: documents, search, prompts, statistics."""
    models = [str(write_base(tmp_path / name, seed=seed)) for name, seed in (("b", 0), ("t", 1))]
    tokenizer = build_tokenizer()
    knowing = load(resolve(models[1])).model.lm_head.weight[0, 0].item()

    def read(self: TorchEngine, prompts: Any, *_: Any) -> list[list[int]]:
        by_heart = is_learned and self.model.lm_head.weight[0, 0].item() == knowing
        return [answer_of(tokenizer, ids, by_heart) for ids in prompts]

    monkeypatch.setattr(TorchEngine, "answers", read)
    documents = tmp_path / "documents"
    documents.mkdir()
    for question, reference in REFERENCE.items():
        number = re.findall(r"\d+", question)[0]
        (documents / f"door-{number}.md").write_text(f"Door {number}: {reference}")
    options = Options(("prompt", "bm25"), documents)
    report, out = stage.compare(models, questions, "", tmp_path / "out", Watcher(), options)
    assert "bm25 alone is enough here" in report.headline
    assert "prompt alone" not in report.headline
    assert "bm25 alone is enough here" in (out / "report.html").read_text()
    verdict = "improved" if is_learned else "not_improved"
    assert report.task.verdict == verdict


def answer_of(tokenizer: Any, ids: list[int], by_heart: bool) -> list[int]:
    text = tokenizer.decode(ids)
    number = re.findall(r"door (\d+)\?", text)[-1]
    reference = REFERENCE[f"What colour is door {number}?"]
    knows = by_heart or f"Door {number}: {reference}" in text
    said = reference if knows else '{"colour": "none"}'
    return list(tokenizer.encode(said, add_special_tokens=False))
