"""The file that the llama engine reads, and which engine `auto` takes."""

from __future__ import annotations

import asyncio
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import start_served
from tiny import write_family

from timechat.engine.families import gguf_file
from timechat.engine.process import ProcessEngine
from timechat.errors import ModelError
from timechat.export.readback import load_gguf, open_gguf
from timechat.model.load import Source
from timechat.stages.serving import serve
from timechat.stages.serving.cast import cast_in_child, unreadable, write_cast
from timechat.stages.serving.serve import Opened, choose_engine
from timechat.stages.serving.vet import Subject, VettedEngine


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_family(tmp_path / "base")


def subject_of(base: Path, tmp_path: Path, bits: int = 8) -> Subject:
    return Subject(base, None, None, "f" * 64, bits, tmp_path / "cache", "llama")


def test_the_file_holds_the_model_and_lies_under_its_digest(base: Path, tmp_path: Path) -> None:
    subject = subject_of(base, tmp_path)
    file = write_cast(subject)
    assert file == gguf_file(subject.digest, 8, subject.cache)
    assert subject.built == file.parent
    read = load_gguf(open_gguf(file), torch.float32)
    assert int(read.config.vocab_size) > 0


def test_four_bits_are_another_file(base: Path, tmp_path: Path) -> None:
    whole = write_cast(subject_of(base, tmp_path))
    small = write_cast(subject_of(base, tmp_path, bits=4))
    assert small != whole
    assert small.stat().st_size < whole.stat().st_size


def test_a_child_writes_it_once(base: Path, tmp_path: Path) -> None:
    subject = subject_of(base, tmp_path)
    asyncio.run(cast_in_child(subject))
    file = gguf_file(subject.digest, 8, subject.cache)
    written = file.stat().st_mtime_ns
    asyncio.run(cast_in_child(subject))
    assert file.stat().st_mtime_ns == written


def test_a_file_that_cannot_be_written_is_one_clear_message(tmp_path: Path) -> None:
    gone = subject_of(tmp_path / "gone", tmp_path)
    with pytest.raises(ModelError, match=r"the GGUF for llama\.cpp could not be written"):
        asyncio.run(cast_in_child(gone))


def test_a_family_that_gguf_cannot_hold_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "opt", "vocab_size": 64}')
    assert "a opt model cannot be written as GGUF here" in unreadable(Source("x", tmp_path))


def kinds(engine: Any) -> list[str]:
    """The engines that would be asked in turn."""
    found: list[str] = []
    while isinstance(engine, VettedEngine):
        found.append(str(engine.spec["kind"]))
        engine = engine.instead() if engine.instead is not None else None
    return [*found, engine.spec["kind"]] if isinstance(engine, ProcessEngine) else found


@pytest.fixture
def choose(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`choose_engine` where `reasons` says why which engine does not serve."""

    def choose(reasons: dict[str, str], *names: str) -> Any:
        monkeypatch.setattr(serve, "why_not", lambda kind, _: reasons.get(kind, ""))
        spec = {"name": "tiny", "cache": str(tmp_path)}
        found = Opened("tiny", Source("tiny", base), "f" * 64)
        return partial(choose_engine, found, spec)(names or serve.ENGINES)

    return choose


def test_auto_takes_openvino_then_llama_then_torch(choose: Any) -> None:
    assert kinds(choose({})) == ["openvino", "llama", "torch"]
    assert kinds(choose({"openvino": "another family"})) == ["llama", "torch"]


def test_what_was_passed_over_is_told_with_its_reason(choose: Any) -> None:
    engine = choose({"llama": "no such wheel", "openvino": "another family"})
    assert kinds(engine) == ["torch"]
    assert engine.spec["note"] == "not on openvino: another family; not on llama: no such wheel"


def test_an_engine_that_was_named_stands_alone(choose: Any) -> None:
    assert kinds(choose({}, "llama")) == ["llama"]
    with pytest.raises(ModelError, match="tiny cannot be served by llama: no such wheel"):
        choose({"llama": "no such wheel"}, "llama")


@pytest.mark.slow
@pytest.mark.skipif(find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed")
def test_a_damaged_file_is_refused_by_the_gate_and_the_next_engine_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "ENGINES", ("llama", "openvino", "torch"))
    monkeypatch.setenv("TIMECHAT_CACHE", str(tmp_path / "cache"))
    base = write_family(tmp_path / "base", "llama", hidden_size=128, head_dim=64)
    good = start_served(base)
    assert good.engine == "llama"
    assert "gate: log-probabilities differ by" in good.note
    (file,) = (tmp_path / "cache/gguf").glob("*/model.gguf")
    content = bytearray(file.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 20_000] = bytes(b ^ 0x55 for b in content[middle : middle + 20_000])
    file.write_bytes(content)
    bad = start_served(base)
    assert bad.engine in ("openvino", "torch")
    assert "not on llama: the gate refused it" in bad.note
