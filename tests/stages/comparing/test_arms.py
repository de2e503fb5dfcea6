"""The arms on a tiny model: each is asked and paired, and what it means is said in a sentence."""

from __future__ import annotations

import json
from collections.abc import Generator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from conftest import conversation, serving

from timechat.conversation import Conversation, Message
from timechat.errors import DataError, RecipeError
from timechat.evals.questions import suite
from timechat.records import Measure, Score
from timechat.stages.comparing.arms import (
    Arm,
    few_shot,
    parse_arms,
    tell_enough,
    weigh_arm,
    with_prompt,
)
from timechat.stages.comparing.compare import compare
from timechat.stages.comparing.contest import Options
from timechat.stages.watch import Watcher
from timechat.store.files import read_json

pytestmark = pytest.mark.usefixtures("small_suite")


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"What colour is door {i}?"},
                {"role": "assistant", "content": "It is green."},
            ]
        }
        for i in range(12)
    ]
    file = tmp_path / "questions.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


class Handler(BaseHTTPRequestHandler):
    """Answers every second question, and says that it is another model."""

    count = 0

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        Handler.count += 1
        body = {"model": "tiny-9", "choices": [{"message": {"content": "It is green."}}]}
        broken = Handler.count % 2 == 0
        self.send_response(400 if broken else 200)
        self.end_headers()
        self.wfile.write(b"no" if broken else json.dumps(body).encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def address() -> Generator[str]:
    with serving(Handler) as address:
        yield f"{address}#big"


def test_every_arm_is_asked_paired_and_shown(
    tiny_base: Path, questions: Path, tmp_path: Path
) -> None:
    documents = tmp_path / "documents"
    documents.mkdir()
    (documents / "doors.md").write_text("Every door is green.\n\nEvery roof is red.")
    names = [str(tiny_base), str(tiny_base)]
    options = Options(("prompt", "retrieval", "bm25", "dense", "tuned-retrieval"), documents)
    report, out = compare(names, questions, "", tmp_path / "out", Watcher(), options)
    arms = read_json(out / "report.json")["details"]["arms"]
    wanted = ["prompt", "retrieval", "bm25", "dense", "tuned-retrieval"]
    assert [arm["name"] for arm in arms] == wanted
    assert arms[0]["against_base"]["n"] == 12
    assert any("enough" in finding for finding in report.findings)
    assert "tuned-retrieval" in (out / "report.html").read_text()
    assert "tuned-retrieval" in (out / "report.md").read_text()
    assert len((out / "evals" / "arms" / "prompt.jsonl").read_text().splitlines()) == 12


def test_questions_that_an_endpoint_fails_on_are_left_out_and_counted(
    tiny_base: Path, questions: Path, tmp_path: Path, address: str
) -> None:
    report, out = compare([str(tiny_base), address], questions, "", tmp_path / "out", Watcher())
    assert report.task.n == 6
    assert report.task.after == 1.0
    assert report.retention.verdict == "undecided"
    assert "not measured" in report.retention.note
    told = " ".join(report.findings)
    assert "6 questions not answered (status 400: no)" in told
    assert "asked for big, answered by tiny-9" in told
    again, _ = compare(
        [str(tiny_base), address], questions, "", out, Watcher(), Options(offline=True)
    )
    assert again.task == report.task


def test_an_endpoint_that_answers_nothing_is_an_error_and_no_verdict(
    tiny_base: Path, questions: Path, tmp_path: Path, address: str
) -> None:
    with pytest.raises(DataError, match="answered none of 12 questions"):
        compare(
            [str(tiny_base), address],
            questions, "", tmp_path / "out", Watcher(), Options(offline=True),
        )  # fmt: skip


class Service(BaseHTTPRequestHandler):
    """`chat` knows the answer, `fair` judges by it, `first` always takes the first answer."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        text = asked["messages"][-1]["content"]
        content = {"chat": lambda _: "It is green.", "fair": judge, "first": lambda _: "A"}
        said = content[asked["model"]](text)
        body = {"model": asked["model"], "choices": [{"message": {"content": said}}]}
        body["usage"] = {"prompt_tokens": 7, "completion_tokens": 2}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, format: str, *args: object) -> None:
        """Nothing is printed."""


def judge(text: str) -> str:
    first, second = text.split("Answer A:\n")[1].split("\n\nAnswer B:\n")
    right = ["green" in answer for answer in (first, second)]
    return "TIE" if right[0] == right[1] else "A" if right[0] else "B"


@pytest.fixture
def service() -> Generator[str]:
    with serving(Service) as address:
        yield address


def test_a_judge_sees_who_is_better_and_is_believed_when_it_passes_its_controls(
    tiny_base: Path, questions: Path, tmp_path: Path, service: str
) -> None:
    names, options = [str(tiny_base), f"{service}#chat"], Options(judge=f"{service}#fair")
    report, out = compare(names, questions, "", tmp_path / "out", Watcher(), options)
    found = read_json(out / "report.json")["details"]["judge"]
    assert found["believable"]
    assert found["consistency"] == found["measure"]["after"] == 1.0
    assert found["cost"]["completion_tokens"] > 0
    assert any(line.startswith("judge fair: the new answers win 100%") for line in report.findings)
    assert report.task.name == "answer score"
    again = Options(judge=f"{service}#fair", offline=True)
    compare(names, questions, "", out, Watcher(), again)
    assert read_json(out / "report.json")["details"]["judge"]["measure"] == found["measure"]


def test_a_judge_that_always_takes_the_first_is_named(
    tiny_base: Path, questions: Path, tmp_path: Path, service: str
) -> None:
    names, options = [str(tiny_base), f"{service}#chat"], Options(judge=f"{service}#first")
    report, _ = compare(names, questions, "", tmp_path / "out", Watcher(), options)
    told = " ".join(report.findings)
    assert "not to be believed: it prefers whichever answer stands first (100%" in told


def test_a_hosted_model_is_an_arm_beside_two_local_ones(
    tiny_base: Path, questions: Path, tmp_path: Path, service: str
) -> None:
    names = [str(tiny_base), str(tiny_base)]
    options = Options(hosted=f"{service}#chat")
    _, out = compare(names, questions, "", tmp_path / "out", Watcher(), options)
    (arm,) = read_json(out / "report.json")["details"]["arms"]
    assert arm["name"] == "hosted chat"
    assert arm["against_base"]["after"] == 1.0
    assert arm["cost"]["prompt_tokens"] == 12 * 7
    assert "hosted chat" in (out / "report.html").read_text()


def test_unknown_arms_and_retrieval_without_documents_are_refused() -> None:
    with pytest.raises(RecipeError, match="did you mean 'prompt'"):
        parse_arms("promt", None)
    with pytest.raises(RecipeError, match="--documents"):
        parse_arms("retrieval", None)
    assert parse_arms("prompt, few-shot,prompt", None) == ("prompt", "few-shot")


def test_strengths_need_the_validation_rows_of_a_run(
    tiny_base: Path, questions: Path, tmp_path: Path
) -> None:
    names = [str(tiny_base), str(tiny_base)]
    with pytest.raises(RecipeError, match="name RUN alone"):
        compare(names, questions, "", tmp_path / "out", Watcher(), Options(("strengths",)))


def test_few_shot_shows_the_nearest_rows_of_other_groups_and_the_question_last() -> None:
    def row(name: str, group: str, ask: str, answer: str) -> Conversation:
        return Conversation(name, (Message("user", ask), Message("assistant", answer)), group=group)

    rows = [row("a", "door", "What colour is the door?", "Green"), row("b", "roof", "What colour is the roof?", "Red")]  # noqa: E501  # fmt: skip
    asked = row("q", "door", "Which colour has the door?", "Green")
    shown = few_shot(asked, rows)
    assert [m.content for m in shown] == [
        "What colour is the roof?", "Red", "Which colour has the door?",
    ]  # fmt: skip


def test_the_prompt_keeps_the_system_prompt_that_is_there() -> None:
    asked = conversation("q", "Hi", "Hello").with_system("You sell paint.")
    system, question = with_prompt(asked)
    assert system.content.startswith("You sell paint.\n\n")
    assert question.content == "Hi"


def make_arm(name: str, base: list[float], tuned: list[float], answers: list[str]) -> Arm:
    rows = [conversation(f"q{i}", "Colour?", "green") for i in range(len(base))]
    task = suite.Task(tuple(rows), ((),) * len(rows), ())

    def scores(values: list[float]) -> list[Score]:
        return [Score(f"q{i}", f"q{i}", value, "exact_match/1") for i, value in enumerate(values)]

    return weigh_arm(name, task, answers, scores(base), scores(tuned), 0.1)


def test_retrieval_that_does_as_well_as_training_is_called_enough() -> None:
    tuned = Measure("answer score", 0, 0.9, 0.9, (0.8, 1), 200, 200, "improved", "share")
    answers = ["green"] * 190 + ["red"] * 10
    arm = make_arm("retrieval", [0.0] * 200, [1.0] * 180 + [0.0] * 20, answers)
    assert arm.enough
    assert tell_enough([arm], tuned)[0].startswith("retrieval alone is enough here: 95")


def test_an_arm_that_is_worse_than_training_is_not_enough() -> None:
    tuned = Measure("answer score", 0, 0.9, 0.9, (0.8, 1), 200, 200, "improved", "share")
    arm = make_arm("prompt", [0.0] * 200, [1.0] * 180 + [0.0] * 20, ["green"] * 60 + ["red"] * 140)
    assert not arm.enough
    assert "no arm without training does as well" in tell_enough([arm], tuned)[0]


def test_an_arm_as_poor_as_everything_else_is_not_enough() -> None:
    nothing = Measure("answer score", 0, 0, 0, (0, 0), 200, 200, "not_improved", "share")
    arm = make_arm("prompt", [0.0] * 200, [0.0] * 200, ["red"] * 200)
    assert not arm.enough
    assert "neither training" in tell_enough([arm], nothing)[0]
