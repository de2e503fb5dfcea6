"""Planted from one end to the other: what is wrong with a model stands in its report by name.

Endpoints answer from tables. One is worse on a group though better on the whole, and breaks the
format that every answer had; one is as right and as wrong as another, on other questions.
"""

from __future__ import annotations

import json
import random
from collections.abc import Generator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from conftest import serving, write_base

from timechat.records import Report
from timechat.stages import sides, versus
from timechat.stages.contest import Options
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
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    base = write_base(tmp_path / "base")
    found = versus.resolve(str(base))
    monkeypatch.setattr(versus, "resolve", lambda *_: found)
    monkeypatch.setattr(sides, "load", None)
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


def compare(service: str, names: tuple[str, str], asked: Path, out: Path) -> Report:
    models = [f"{service}#{name}" for name in names]
    return versus.versus(models, asked, "", out, Watcher(), Options())[0]


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
    same = compare(service, ("old", "old"), asked, tmp_path / "same")
    assert (same.verdict, same.task.difference, same.changed) == ("not_improved", 0.0, ())
