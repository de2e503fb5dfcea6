"""What `serve` loads into an engine goes through the gate; where it is refused, torch answers."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import start_served
from tiny import write_family

from timechat.engine.families import compiled_folder
from timechat.engine.protocol import Capabilities, Delta, Ending, Request
from timechat.errors import ModelError
from timechat.export.gate import Line, Tolerance
from timechat.stages.serving import reference, vet
from timechat.stages.serving.vet import Subject, VettedEngine, Wanted

LINES = (
    Line("a", (1, 2), (5, 6, 2), True, (-0.1, -0.2, -0.3), (3.0, 2.0, 4.0)),
    Line("b", (1, 3), (7, 2), True, (-0.1, -0.2), (3.0, 2.0)),
)
WANTED = Wanted(LINES, Tolerance(0.05, 0.5), (2,))
SPEC: dict[str, Any] = {"kind": "openvino", "name": "tiny"}
TORCH: dict[str, Any] = {"kind": "torch", "name": "tiny"}


class Canned:
    """An engine that says what it was given for each last token of a prompt."""

    made: list[str]

    def __init__(self, spec: dict[str, Any], said: dict[int, list[tuple[int, float]]]) -> None:
        self.spec, self.said = spec, said
        self.ready, self.running, self.asked = False, 0, 0
        self.capabilities = Capabilities(spec["kind"], 100, 100, logprobs=0)

    async def start(self) -> None:
        self.ready = True

    async def stop(self) -> None:
        self.ready = False

    async def drain(self, deadline_s: float) -> bool:
        return True

    async def stream(self, request: Request) -> AsyncGenerator[Delta]:
        self.asked += 1
        for token, nats in self.said[request.prompt[-1]]:
            yield Delta(token, logprob=nats)
        yield Delta(None, Ending.STOP)


RIGHT = {2: [(5, -0.1), (6, -0.2)], 3: [(7, -0.1)]}
OTHER_WORDS = {2: [(5, -0.1), (9, -0.2)], 3: [(7, -0.1)]}
UNLIKELY = {2: [(5, -0.9), (6, -0.2)], 3: [(7, -0.1)]}


@pytest.fixture
def subject(tmp_path: Path) -> Subject:
    found = Subject(tmp_path / "base", None, None, "d" * 64, 8, tmp_path / "cache")
    folder = compiled_folder(found.digest, 8, found.cache)
    folder.mkdir(parents=True)
    (folder / "openvino_model.bin").write_bytes(b"weights")
    vet.keep_answers(found, WANTED)
    return found


def start(subject: Subject, said: Any, instead: Any = TORCH) -> tuple[VettedEngine, list[Canned]]:
    made: list[Canned] = []

    def make(spec: dict[str, Any]) -> Any:
        made.append(Canned(spec, said))
        return made[-1]

    next_best = None if instead is None else lambda: make(instead)
    engine = VettedEngine(SPEC, next_best, subject, make)
    asyncio.run(engine.start())
    return engine, made


def test_an_engine_that_answers_like_the_evaluated_model_serves_with_its_figure(
    subject: Subject,
) -> None:
    engine, made = start(subject, RIGHT)
    assert engine.ready
    assert engine.capabilities.engine == "openvino"
    assert "2 of 2 greedy answers are the same" in engine.capabilities.note
    assert len(made) == 1


@pytest.mark.parametrize(("said", "name"), [(OTHER_WORDS, "answers"), (UNLIKELY, "likelihood")])
def test_an_engine_that_does_not_is_refused_by_name_and_torch_answers(
    said: Any, name: str, subject: Subject
) -> None:
    engine, made = start(subject, said)
    assert engine.capabilities.engine == "torch"
    assert f"not on openvino: the gate refused it ({name})" in engine.capabilities.note
    assert not made[0].ready, "the refused engine was let go"
    assert engine.ready


def test_an_engine_that_was_asked_for_by_name_is_refused_without_another(subject: Subject) -> None:
    with pytest.raises(ModelError, match=r"cannot be served by openvino: the gate refused it"):
        start(subject, OTHER_WORDS, instead=None)


def test_a_restart_asks_nothing(subject: Subject) -> None:
    start(subject, RIGHT)
    engine, made = start(subject, UNLIKELY)
    assert made[0].asked == 0
    assert engine.capabilities.engine == "openvino"


def test_a_refusal_is_remembered_without_starting_the_engine(subject: Subject) -> None:
    start(subject, UNLIKELY)
    engine, made = start(subject, RIGHT)
    assert [one.spec["kind"] for one in made if one.ready] == ["torch"]
    assert made[0].asked == 0
    assert "likelihood" in engine.capabilities.note


def test_another_compiled_file_is_another_model(subject: Subject) -> None:
    start(subject, RIGHT)
    file = compiled_folder(subject.digest, 8, subject.cache) / "openvino_model.bin"
    file.write_bytes(b"damaged")
    os.utime(file, ns=(1, 1))
    engine, made = start(subject, UNLIKELY)
    assert made[0].asked == 2
    assert engine.capabilities.engine == "torch"


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"made_by": 1}', "not json"])
def test_a_cache_file_that_is_not_ours_is_asked_anew(content: str, subject: Subject) -> None:
    start(subject, RIGHT)
    subject.verdict.write_text(content)
    _, made = start(subject, RIGHT)
    assert made[0].asked == 2
    row = json.loads(subject.verdict.read_text())
    row["verdict"].pop("gap")
    subject.verdict.write_text(json.dumps(row))
    assert vet.known_verdict(subject) is None


def test_what_the_evaluated_model_said_is_heard_by_a_child_and_kept(tmp_path: Path) -> None:
    base = write_family(tmp_path / "base")
    found = Subject(base, None, None, "e" * 64, 8, tmp_path / "cache")
    wanted = asyncio.run(vet.hear_in_child(found))
    assert wanted == vet.known_answers(found) == reference.hear(found)
    assert 3 <= len(wanted.lines) <= reference.NUM_PROMPTS
    assert wanted.tolerance.gap > 0.003


def test_a_model_that_cannot_be_heard_is_one_clear_message(tmp_path: Path) -> None:
    found = Subject(tmp_path / "nothing", None, None, "e" * 64, 8, tmp_path / "cache")
    with pytest.raises(ModelError, match="could not be heard for the gate"):
        asyncio.run(vet.hear_in_child(found))


def test_an_engine_that_cannot_even_start_leaves_the_model_to_torch(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Canned.start

    async def start_torch_alone(self: Canned) -> None:
        if self.spec["kind"] == "openvino":
            raise ModelError("tiny could not be started: a cut file\nat line 84")
        await whole(self)

    monkeypatch.setattr(Canned, "start", start_torch_alone)
    engine, _ = start(subject, RIGHT)
    assert engine.capabilities.note == "not on openvino: tiny could not be started: a cut file"
    with pytest.raises(ModelError, match="a cut file"):
        start(subject, RIGHT, instead=None)


@pytest.mark.slow
def test_a_damaged_graph_is_refused_and_torch_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino_genai", reason="openvino-genai is not installed")
    from timechat.stages.serving import serve

    monkeypatch.setattr(serve, "ENGINES", ("openvino", "torch"))
    monkeypatch.setenv("TIMECHAT_CACHE", str(tmp_path / "cache"))
    base = write_family(tmp_path / "base", "llama", hidden_size=128, head_dim=64)
    good = start_served(base)
    assert good.engine == "openvino"
    assert "gate: log-probabilities differ by" in good.note
    (file,) = (tmp_path / "cache/openvino").glob("*/openvino_model.bin")
    content = np.fromfile(file, dtype=np.uint8)
    content[2000:40_000] ^= 0x55  # within the embedding, which comes first
    content.tofile(file)
    bad = start_served(base)
    assert bad.engine == "torch"
    assert "not on openvino: the gate refused it" in bad.note


def test_a_lead_of_nothing_is_no_answer_to_compare() -> None:
    empty = replace(LINES[0], answer=(), nats=(), leads=())

    class Silent(Canned):
        pass

    engine: Any = Silent(SPEC, RIGHT)
    verdict = asyncio.run(vet.ask(engine, Wanted((empty, LINES[1]), WANTED.tolerance, (2,))))
    assert verdict.num_answers == 1
