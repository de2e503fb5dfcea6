"""The verb: every format from a folder and from a run, the gate's refusals, and bad input."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import FAMILIES, build_family, byte_tokenizer, write_family
from transformers import AutoModelForCausalLM, AutoTokenizer

from timechat.cli.main import main
from timechat.conversation import Conversation, Message
from timechat.errors import ExportError, UserError
from timechat.model.adapt import adapters, attach
from timechat.model.choose import set_activation
from timechat.model.load import digest_folder, load, resolve
from timechat.model.peft import save_adapter
from timechat.stages.exporting import hearing, target
from timechat.stages.exporting.export import export
from timechat.store.files import read_json

QUESTIONS = [
    Conversation(str(i), (Message("user", f"What is {i}?"), Message("assistant", f"It is {i}.")))
    for i in range(4)
]
IDS = torch.tensor([[5, 9, 200, 31, 7, 7, 90]])


@pytest.fixture(autouse=True)
def few_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hearing, "answer_conversations", lambda split: QUESTIONS)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_family(tmp_path / "base")


@pytest.fixture
def tuned(base: Path, tmp_path: Path) -> Path:
    """An adapter folder, as a checkpoint holds it."""
    model = build_family("llama")
    attach(model, 4, 8.0, "all")
    for layer in adapters(model).values():
        torch.nn.init.normal_(layer.lora_b, std=0.1)
    folder = tmp_path / "tuned"
    folder.mkdir()
    save_adapter(model, folder, str(base), digest_folder(base), "all")
    byte_tokenizer().save_pretrained(folder)
    return folder


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits.float()


def test_a_merged_export_loads_in_plain_transformers_and_answers_alike(
    tuned: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = export(str(tuned), "merged", out)
    theirs = AutoModelForCausalLM.from_pretrained(out)
    loaded = load(resolve(str(tuned)))
    torch.testing.assert_close(logits(theirs), logits(loaded.model.float()), rtol=0.1, atol=0.2)
    assert done.verdict.passed
    assert done.verdict.num_tokens > 20
    assert theirs.generation_config.eos_token_id == 2
    assert AutoTokenizer.from_pretrained(out).chat_template
    assert "The gate" in (out / "README.md").read_text()
    assert read_json(out / "gate.json")["figure"] == done.figure


def test_an_adapter_export_loads_in_plain_peft(tuned: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    out = tmp_path / "out"
    export(str(tuned), "adapter", out)
    theirs = PeftModel.from_pretrained(build_family("llama"), out)
    ours = build_family("llama")
    from timechat.model.peft import load_adapter

    load_adapter(ours, tuned)
    torch.testing.assert_close(logits(theirs), logits(ours), rtol=1e-4, atol=1e-4)


def test_a_gguf_export_has_all_that_a_reader_needs(tuned: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = export(str(tuned), "gguf", out, "f16")
    assert set(done.files) == {"Modelfile", "README.md", "gate.json", "tuned-f16.gguf"}
    modelfile = (out / "Modelfile").read_text()
    assert "FROM ./tuned-f16.gguf" in modelfile
    assert 'PARAMETER stop "<|im_end|>"' in modelfile
    assert done.stop_tokens == ("<|im_end|>",)


def test_a_gguf_may_be_named_as_a_file(base: Path, tmp_path: Path) -> None:
    done = export(str(base), "gguf", tmp_path / "mine.gguf", "q8_0")
    assert (tmp_path / "mine.gguf").is_file()
    assert (tmp_path / "Modelfile").is_file()
    assert set(done.files) == {"Modelfile", "mine.gguf", "mine.md", "mine.gate.json"}
    with pytest.raises(ExportError, match="exists"):
        export(str(base), "gguf", tmp_path / "mine.gguf", "q8_0")
    with pytest.raises(ExportError, match="Modelfile exists"):
        export(str(base), "gguf", tmp_path / "other.gguf", "q8_0")


@pytest.mark.parametrize(
    ("form", "quantisation", "words"),
    [
        ("onnx", "", "no format 'onnx'"),
        ("gguf", "q9", "no quantisation 'q9'"),
        ("merged", "q8_0", "--quantize is for gguf only"),
        ("adapter", "", "is a whole model, not an adapter"),
    ],
)
def test_a_wrong_wish_is_one_clear_message_and_leaves_nothing(
    form: str, quantisation: str, words: str, base: Path, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=words):
        export(str(base), form, tmp_path / "out", quantisation)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base"]


def test_an_existing_target_is_left_alone(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(ExportError, match="exists"):
        export(str(base), "merged", out)
    assert [p.name for p in out.iterdir()] == ["mine.txt"]


def test_an_adapter_whose_base_changed_is_refused(base: Path, tuned: Path, tmp_path: Path) -> None:
    build_family("llama", seed=1).save_pretrained(base)
    with pytest.raises(ExportError, match="digest differs"):
        export(str(tuned), "merged", tmp_path / "out")


def test_a_quantised_base_is_refused(base: Path, tmp_path: Path) -> None:
    config = read_json(base / "config.json")
    config["quantization_config"] = {"quant_method": "bitsandbytes"}
    (base / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="quantised already"):
        export(str(base), "merged", tmp_path / "out")


def test_no_space_is_told_before_anything_is_written(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(target, "free_disk", lambda folder: 1000)
    with pytest.raises(ExportError, match="free some space"):
        export(str(base), "gguf", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", ["merged", "gguf"])
def test_too_little_memory_for_the_gate_is_told_with_its_figure_before_writing(
    form: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(target, "free_memory", lambda: 1000)
    with pytest.raises(ExportError, match=r"takes 0\.0 GB of memory, and 0\.0 GB are free"):
        export(str(base), form, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_tokens_added_to_the_tokenizer_alone_are_refused(base: Path, tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([f"<extra{i}>" for i in range(300)])
    tokenizer.save_pretrained(base)
    with pytest.raises(ExportError, match="tokens were added to one and not to the other"):
        export(str(base), "gguf", tmp_path / "out")


def test_an_adapter_of_a_quantised_base_is_folded_into_the_whole_one(
    tuned: Path, tmp_path: Path
) -> None:
    note = read_json(tuned / "base.json")
    (tuned / "base.json").write_text(json.dumps({**note, "bits": 8}))
    done = export(str(tuned), "merged", tmp_path / "out")
    assert "beside its base in 8 bits; here it is folded into the whole base" in str(done.notes)
    assert done.verdict.gap > 1e-4


@pytest.mark.parametrize("tied", ["llama", "llama untied"])
def test_heads_tied_or_not_come_out_alike(tied: str, tmp_path: Path) -> None:
    folder = write_family(tmp_path / "tied", tied)
    assert export(str(folder), "gguf", tmp_path / "out", "bf16").verdict.passed


@pytest.fixture
def other_activation(base: Path, tmp_path: Path) -> Path:
    """An adapter trained with another activation than its base names."""
    model = build_family("llama")
    set_activation(model, "gelu")
    attach(model, 4, 8.0, "all")
    for layer in adapters(model).values():
        torch.nn.init.normal_(layer.lora_b, std=0.1)
    folder = tmp_path / "gelu"
    folder.mkdir()
    save_adapter(model, folder, str(base), digest_folder(base), "all")
    byte_tokenizer().save_pretrained(folder)
    return folder


def test_a_changed_activation_is_in_the_merged_models_own_settings(
    other_activation: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert export(str(other_activation), "merged", out).verdict.passed
    assert read_json(out / "config.json")["hidden_act"] == "gelu"
    theirs = AutoModelForCausalLM.from_pretrained(out)
    loaded = load(resolve(str(other_activation)))
    torch.testing.assert_close(logits(theirs), logits(loaded.model.float()), rtol=0.1, atol=0.2)


def test_a_changed_activation_that_a_format_cannot_say_is_refused_by_name(
    other_activation: Path, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match="changed the base's activation to 'gelu'"):
        export(str(other_activation), "adapter", tmp_path / "out")
    with pytest.raises(ExportError, match="hidden_act = 'gelu'"):
        export(str(other_activation), "gguf", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "small"
    place.mkdir()
    ask = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)]
    if subprocess.run(ask, capture_output=True, check=False).returncode != 0:
        pytest.skip("needs the right to mount a small tmpfs")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("form", ["merged", "gguf"])
def test_a_disk_that_fills_up_while_writing_is_one_clear_message_and_nothing_stays(
    form: str,
    base: Path,
    small_disk: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    # Somebody else takes the space after it was looked at.
    monkeypatch.setattr(target, "free_disk", lambda folder: 2**40)
    with pytest.raises(SystemExit) as ended:
        main(["export", str(base), "--format", form, "--out", str(small_disk / "out")])
    assert ended.value.code == 2
    told = capfd.readouterr().err
    assert [line.startswith("error: ") for line in told.splitlines()].count(True) == 1
    assert "No space left on device" in told
    assert "free some space, then run the same command again" in told
    assert list(small_disk.iterdir()) == []


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_every_family_goes_through_the_whole_verb(name: str, tmp_path: Path) -> None:
    folder = write_family(tmp_path / "base", name)
    verdict = export(str(folder), "gguf", tmp_path / "out", "q8_0").verdict
    assert verdict.passed
    assert verdict.tolerance.gap < 1
