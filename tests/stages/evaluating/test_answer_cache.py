"""A base's known answers are not asked again; what is not ours in the cache is not believed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import write_base

from timechat.engine.torch import TorchEngine
from timechat.evals.questions.sample import take_share
from timechat.evals.questions.suite import General, general_suite
from timechat.model.load import Loaded, load, resolve
from timechat.stages.evaluating import cache
from timechat.stages.evaluating.cache import AnswerCache, ask_general
from timechat.stages.watch import Watcher


class Listener(Watcher):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Loaded:
    monkeypatch.setenv("TIMECHAT_CACHE", str(tmp_path / "cache"))
    return load(resolve(str(write_base(tmp_path / "base"))))


@pytest.fixture
def general(base: Loaded) -> General:
    return take_share(general_suite(base.renderer), 0.1)


def nothing(_: int) -> None:
    """No progress is watched."""


def test_what_is_remembered_is_what_was_asked(base: Loaded, general: General) -> None:
    asked = AnswerCache(base, Watcher()).ask(general, nothing)
    assert asked == ask_general(base, general, nothing)
    again = AnswerCache(base, Watcher())
    assert again.covers(general)
    assert again.ask(general, nothing) == asked


def test_a_known_base_is_not_asked(
    base: Loaded, general: General, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = AnswerCache(base, Watcher()).ask(general, nothing)
    monkeypatch.delattr(cache, "ask_general")
    assert AnswerCache(base, Watcher()).ask(general, nothing) == asked


def test_only_what_is_new_is_asked(base: Loaded, general: General) -> None:
    part = General(general.choices[:5], general.prose[:1], general.answers[:1])
    AnswerCache(base, Watcher()).ask(part, nothing)
    kept = AnswerCache(base, Watcher())
    assert kept.covers(part)
    assert not kept.covers(general)
    kept.ask(general, nothing)
    assert AnswerCache(base, Watcher()).covers(general)


def test_another_base_is_another_file(base: Loaded, tmp_path: Path) -> None:
    first = AnswerCache(base, Watcher()).file
    other = write_base(tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-5}))
    assert AnswerCache(load(resolve(str(other))), Watcher()).file != first


def test_other_code_knows_nothing_of_what_was_answered(
    base: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = AnswerCache(base, Watcher()).file
    monkeypatch.setattr(cache, "code_digest", lambda: "other")
    assert AnswerCache(base, Watcher()).file != first


def test_the_oldest_bases_are_forgotten(base: Loaded, general: General) -> None:
    kept = AnswerCache(base, Watcher())
    kept.file.parent.mkdir(parents=True)
    for i in range(cache.MAX_FILES + 3):
        (kept.file.parent / f"{i}.json").write_text("{}")
    kept.ask(General(general.choices[:2], (), ()), nothing)
    assert len(list(kept.file.parent.iterdir())) == cache.MAX_FILES
    assert kept.file.is_file()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: "[" * 100_000,
        lambda text: text[: len(text) // 2],
        lambda text: "null",
        lambda text: text.replace('"choices": {', '"choices": {"x": [1e999], '),
        lambda text: text.replace('"choices": {', '"choices": {"x": [5.0], '),
        lambda text: text.replace('"choices": {', '"choices": {"x": ["0"], '),
        lambda text: text.replace('"choices": {', f'"choices": {{"x": [-1{"0" * 400}], '),
        lambda text: text.replace('"texts": {', '"texts": {"x": [1.0, 2, 3], '),
        lambda text: text.replace('"answers": {', '"answers": {"x": [1.0, [[1.5]]], '),
        lambda text: text.replace('"answers": {', '"answers": {"x": 3, '),
        lambda text: text.replace('"format": 2', '"format": 0'),
    ],
    ids=[
        *("deep", "torn", "null", "endless", "above-one", "words", "huge", "more-hits"),
        *("half-a-token", "no-answers", "format"),
    ],
)
def test_hostile_content_is_said_and_asked_anew(base: Loaded, general: General, spoil) -> None:
    kept = AnswerCache(base, Watcher())
    asked = kept.ask(general, nothing)
    kept.file.write_text(spoil(kept.file.read_text()))
    listener = Listener()
    again = AnswerCache(base, listener)
    assert not again.covers(general)
    assert "asking again" in listener.said[0]
    assert again.ask(general, nothing) == asked


PROMPTS = [list(range(1, 4 + i % 9)) for i in range(200)]


def test_an_evaluation_that_was_stopped_goes_on_and_ends_as_if_it_never_was(
    base: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = TorchEngine(base.model).answers(PROMPTS, 6, base.renderer.stop_ids)
    asked: list[int] = []
    answers = TorchEngine.answers

    def once(self: TorchEngine, prompts: list[list[int]], *rest: object) -> list[list[int]]:
        if asked:
            raise KeyboardInterrupt
        asked.append(len(prompts))
        return answers(self, prompts, *rest)  # type: ignore[arg-type]

    with monkeypatch.context() as stopped:
        stopped.setattr(TorchEngine, "answers", once)
        with pytest.raises(KeyboardInterrupt):
            AnswerCache(base, Watcher()).answer(PROMPTS, 6, nothing)

    def counted(self: TorchEngine, prompts: list[list[int]], *rest: object) -> list[list[int]]:
        asked.append(len(prompts))
        return answers(self, prompts, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(TorchEngine, "answers", counted)
    again, seconds = AnswerCache(base, Watcher()).answer(PROMPTS, 6, nothing)
    assert again == whole
    assert asked == [96, 96, 8]
    known, told = AnswerCache(base, Watcher()).answer(PROMPTS, 6, nothing)
    assert (known, told, len(asked)) == (whole, seconds, 3)


def test_other_decoding_and_another_strength_are_asked_anew(base: Loaded) -> None:
    kept = AnswerCache(base, Watcher())
    short, _ = kept.answer(PROMPTS[:3], 2, nothing)
    long, _ = kept.answer(PROMPTS[:3], 5, nothing)
    assert max(map(len, short)) <= 2 < max(map(len, long))
    assert AnswerCache(base, Watcher(), 0.5).file != kept.file
