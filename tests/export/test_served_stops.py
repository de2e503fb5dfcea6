"""`serve` refuses by name what would not stop as it did when it was evaluated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_layered import QUESTIONS, write_adapter
from tiny import write_family
from transformers import AutoTokenizer

from timechat.errors import ModelError
from timechat.stages.exporting import hearing
from timechat.stages.exporting.export import export
from timechat.stages.serving.serve import find_models, open_model, split_name


@pytest.fixture
def adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An exported adapter, with what its gate heard beside it."""
    monkeypatch.setattr(hearing, "answer_conversations", lambda split: QUESTIONS)
    tuned = write_adapter(write_family(tmp_path / "base"))
    export(str(tuned), "adapter", tmp_path / "adapter")
    return tmp_path / "adapter"


def serve(folder: Path) -> None:
    (found,) = find_models([str(folder)], lambda _: None, "torch")
    open_model(found)


def spoil(folder: Path, token: str) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token": token}))
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|im_end|>", token))


def test_an_adapter_as_it_was_exported_is_served(adapter: Path) -> None:
    serve(adapter)


def test_an_adapter_that_ends_at_another_token_is_refused(adapter: Path) -> None:
    spoil(adapter, "<|endoftext|>")
    with pytest.raises(
        ModelError, match=r"stop tokens are .*endoftext.*gate heard it end at .*im_end"
    ):
        serve(adapter)


def test_an_adapter_whose_stop_token_the_model_cannot_say_is_refused(adapter: Path) -> None:
    (adapter / "gate.json").unlink()  # from elsewhere
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    tokenizer.add_tokens([f"<|{i}|>" for i in range(600)])
    tokenizer.eos_token = "<|done|>"
    tokenizer.save_pretrained(adapter)
    with pytest.raises(
        ModelError, match=r"would never stop: its stop token '<\|done\|>' is number"
    ):
        serve(adapter)


def test_a_model_may_be_served_under_a_name_of_its_own(tmp_path: Path) -> None:
    base = write_family(tmp_path / "base")
    (found,) = find_models([f"gpt-4o-mini={base}"], lambda _: None, "torch")
    assert found.name == "gpt-4o-mini"
    assert found.source.folder == base
    odd = tmp_path / "a=b"
    odd.mkdir()
    assert split_name(str(odd)) == ("", str(odd))
    assert split_name("http://host/v1?a=b#c") == ("", "http://host/v1?a=b#c")
