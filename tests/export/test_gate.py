"""The gate refuses by name whatever does not answer as it was evaluated, and leaves nothing."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CHATML
from gguf import GGMLQuantizationType as Kind
from gguf.quants import dequantize, quantize
from safetensors.torch import load_file, save_file
from tiny import build_family, byte_tokenizer, write_family

from timechat.conversation import Conversation, Message
from timechat.errors import ExportError
from timechat.export import noise
from timechat.export.gate import (
    Line,
    Probe,
    Said,
    Tolerance,
    Verdict,
    follow,
    hear,
    judge,
    judge_engine,
    refuse_unless,
)
from timechat.export.ggufile import QUANTISATIONS
from timechat.export.readback import open_gguf
from timechat.export.tolerance import FLOOR, tolerance_for
from timechat.model.adapt import attach
from timechat.model.load import digest_folder
from timechat.model.peft import save_adapter
from timechat.stages.exporting import export as stage
from timechat.stages.exporting import hearing
from timechat.stages.exporting.export import export

QUESTIONS = [
    Conversation(str(i), (Message("user", f"What is {i}?"), Message("assistant", f"It is {i}.")))
    for i in range(3)
]
STOPS = frozenset({2})
PROBES = [Probe(str(i), (1, 40 + i, 7, 90), (33, 12 + i, 2)) for i in range(4)]
STRICT = Tolerance(0.01, 0.05)


@pytest.fixture(autouse=True)
def few_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hearing, "answer_conversations", lambda split: QUESTIONS)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_family(tmp_path / "base")


def refused(base: Path, form: str, words: str) -> None:
    with pytest.raises(ExportError, match=re.escape(words)):
        export(str(base), form, base.parent / "out", "f16" if form == "gguf" else "")
    assert [p.name for p in base.parent.iterdir()] == ["base"]


def test_a_broken_stop_token_is_refused_by_name(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = stage.read_vocabulary
    monkeypatch.setattr(
        stage,
        "read_vocabulary",
        lambda *given: replace(read(*given), special_ids=(("eos", 5), ("eot", 5))),
    )
    refused(base, "gguf", "(stop tokens): ['<|im_end|>'] ended answers")


def test_a_swapped_template_is_refused_by_name(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = stage.read_vocabulary
    monkeypatch.setattr(
        stage, "read_vocabulary", lambda *given: replace(read(*given), template="{{ messages }}")
    )
    refused(base, "gguf", "(template)")


def test_another_way_of_splitting_is_refused_by_name(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = stage.read_vocabulary
    monkeypatch.setattr(stage, "read_vocabulary", lambda *given: replace(read(*given), pre="qwen2"))
    refused(base, "gguf", "(tokenizer): other ids for")


def test_a_corrupted_tensor_of_a_gguf_is_refused_by_its_name(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = stage.write_gguf

    def spoil(path: Path, *given: Any) -> None:
        write(path, *given)
        found = next(t for t in open_gguf(path).reader.tensors if t.name == "blk.1.ffn_up.weight")
        content = bytearray(path.read_bytes())
        content[int(found.data_offset) + 101] ^= 0x40
        path.write_bytes(bytes(content))

    monkeypatch.setattr(stage, "write_gguf", spoil)
    refused(base, "gguf", "(weights): blk.1.ffn_up.weight is not what was evaluated")


def test_a_corrupted_tensor_of_a_merged_folder_is_refused_by_its_name(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = stage.write_merged

    def spoil(weights: Any, folder: Path, **options: Any) -> None:
        write(weights, folder, **options)
        tensors = load_file(folder / "model.safetensors")
        tensors["model.layers.0.mlp.up_proj.weight"][3, 4] += 0.5
        save_file(tensors, folder / "model.safetensors")

    monkeypatch.setattr(stage, "write_merged", spoil)
    refused(base, "merged", "(weights): model.layers.0.mlp.up_proj.weight is not what")


def test_a_wrong_stop_token_of_a_merged_folder_is_refused_by_name(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage.gate, "stops_in_order", lambda renderer: [7])
    refused(base, "merged", "(stop tokens)")


def spoil_settings(monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Path], None]) -> None:
    """What becomes of a folder after its settings and tokenizer were written."""
    write = stage.write_settings

    def spoiled(weights: Any, folder: Path, *given: Any) -> None:
        write(weights, folder, *given)
        spoil(folder)

    monkeypatch.setattr(stage, "write_settings", spoiled)


def swap_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(CHATML.replace("im_start", "turn"))


def swap_tokenizer(folder: Path) -> None:
    template = (folder / "chat_template.jinja").read_text()
    other = byte_tokenizer(size=400)
    other.chat_template = template
    other.save_pretrained(folder)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [(swap_template, "(template)"), (swap_tokenizer, "(tokenizer): other ids for")],
)
def test_a_merged_folder_with_another_template_or_tokenizer_is_refused_by_name(
    spoil: Callable[[Path], None], words: str, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil_settings(monkeypatch, spoil)
    refused(base, "merged", words)


def corrupt_adapter(folder: Path) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors[min(tensors)][0, 0] += 0.5
    save_file(tensors, folder / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (swap_template, "(template)"),
        (swap_tokenizer, "(tokenizer): other ids for"),
        (corrupt_adapter, "the adapter's file changed on its way"),
    ],
)
def test_an_adapter_folder_that_was_damaged_is_refused_by_name(
    spoil: Callable[[Path], None], words: str, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned, out = base.parent / "tuned", base.parent / "out"
    tuned.mkdir()
    model = build_family("llama")
    attach(model, 4, 8.0, "all")
    save_adapter(model, tuned, str(base), digest_folder(base), "all")
    byte_tokenizer().save_pretrained(tuned)
    copy = stage._copy_adapter

    def spoiled(source: Any, folder: Path) -> None:
        copy(source, folder)
        spoil(folder)

    monkeypatch.setattr(stage, "_copy_adapter", spoiled)
    with pytest.raises(ExportError, match=re.escape(words)):
        export(str(tuned), "adapter", out)
    assert not out.exists()


def test_a_model_that_answers_otherwise_is_refused(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    back = stage._load_back

    def other(*given: Any) -> Any:
        return replace(back(*given), model=build_family("llama", seed=1))

    monkeypatch.setattr(stage, "_load_back", other)
    refused(base, "merged", "(likelihood)")


def test_a_model_is_the_same_as_itself() -> None:
    model = build_family("llama")
    lines = hear(model, PROBES, STOPS, max_new_tokens=6)
    verdict = judge(lines, follow(model, lines), STRICT)
    assert verdict.passed
    assert verdict.gap < 1e-6
    assert verdict.num_same == verdict.num_answers == len(PROBES)
    assert verdict.num_tokens == sum(len(line.answer) for line in lines)


def test_another_model_fails_on_likelihood_and_on_answers() -> None:
    lines = hear(build_family("llama"), PROBES, STOPS, max_new_tokens=6)
    verdict = judge(lines, follow(build_family("llama", seed=1), lines), STRICT)
    assert verdict.gap > 1
    with pytest.raises(ExportError, match="likelihood"):
        refuse_unless(verdict, "it")


def line(answer: Sequence[int], leads: Sequence[float]) -> Line:
    nats = tuple(-0.1 for _ in answer)
    return Line("a", (1, 2), tuple(answer), True, nats, tuple(leads))


def test_answers_may_part_only_where_the_evaluated_model_was_undecided() -> None:
    evaluated = [line([5, 6, 2], [3.0, 0.02, 2.0])]
    near = [replace(evaluated[0], leads=(2.9, -0.01, 2.0))]
    far = [replace(evaluated[0], leads=(-0.5, 0.02, 2.0))]
    assert judge(evaluated, near, STRICT).passed
    verdict = judge(evaluated, far, STRICT)
    assert verdict.lost_margin == 3.0
    with pytest.raises(ExportError, match="answers"):
        refuse_unless(verdict, "it")


def test_a_gap_that_is_no_number_never_passes() -> None:
    evaluated = [line([5, 2], [3.0, 2.0])]
    broken = [replace(evaluated[0], nats=(float("nan"), -0.1))]
    verdict = judge(evaluated, broken, STRICT)
    assert not verdict.passed
    with pytest.raises(ExportError, match="likelihood"):
        refuse_unless(verdict, "it")


def test_an_engine_is_judged_by_its_answers_and_by_likelihood_where_it_names_it() -> None:
    evaluated = [line([5, 6, 2], [3.0, 0.02, 2.0])]

    def judged(*ids: int, nats: Sequence[float] = ()) -> Verdict:
        return judge_engine(evaluated, lambda prompt, most: Said(ids, nats), STRICT, STOPS)

    assert judged(5, 6, 2).num_same == 1
    assert judged(5, 6).num_same == 1
    assert judged(5, 8, 2).passed
    assert not judged().passed
    assert not judged(8, 6, 2).passed
    assert judged(5, 6, nats=(-0.1, -0.1)).num_tokens == 2
    assert not judged(5, 6, nats=(-0.1, -0.9)).passed
    assert not judged(5, 6, nats=(-0.1, float("nan"))).passed
    assert judged(5, 8, nats=(-0.1, -9.0)).passed, "after parting, other words are weighed"


def test_what_is_allowed_grows_with_what_a_formats_noise_moves() -> None:
    model = build_family("llama")
    lines = hear(model, PROBES, STOPS, max_new_tokens=6)
    allowed: list[Tolerance] = []
    for kind in (Kind.F16, Kind.Q8_0, Kind.Q4_0):
        rough = build_family("llama")
        matrices = [(n, p.detach()) for n, p in rough.named_parameters() if p.dim() == 2]
        noise.roughen(rough, [(name, noise.step_of(kind, value)) for name, value in matrices])
        allowed.append(tolerance_for(lines, follow(rough, lines)))
    assert FLOOR.gap < allowed[0].gap < allowed[1].gap < allowed[2].gap
    assert FLOOR.margin < allowed[0].margin < allowed[1].margin < allowed[2].margin


@pytest.mark.parametrize("kind", [k for k, _ in QUANTISATIONS.values() if k != Kind.F32])
def test_the_noise_is_as_wide_as_the_formats_own_rounding(kind: Kind) -> None:
    torch.manual_seed(0)
    value = torch.randn(256, 256)
    step = noise.step_of(kind, value)
    stored = quantize(value.numpy(), kind)
    error = torch.from_numpy(dequantize(stored, kind)).reshape(value.shape) - value
    spread = step / 12**0.5
    assert float(error.std()) == pytest.approx(float(spread.pow(2).mean().sqrt()), rel=0.15)


MEASURE = """
import sys
from pathlib import Path
from timechat.export.weights import Weights
from timechat.export.merged import write_merged

def status(name):
    text = Path("/proc/self/status").read_text()
    return int(next(l for l in text.splitlines() if l.startswith(name)).split()[1]) * 1024

weights = Weights(Path(sys.argv[1]))
Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
write_merged(weights, Path(sys.argv[2]), shard_bytes=8 * 2**20)
print(status("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_a_merge_needs_little_more_memory_than_its_largest_shard(tmp_path: Path) -> None:
    base, out = tmp_path / "base", tmp_path / "out"
    base.mkdir()
    out.mkdir()
    (base / "config.json").write_text("{}")
    for i in range(16):
        tensors = {f"{i}.{j}": torch.ones(2**20, dtype=torch.float32) for j in range(2)}
        save_file(tensors, base / f"model-{i:02d}.safetensors")
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(base), str(out)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert len(list(out.glob("*.safetensors"))) == 16
    # 128 MiB in all; a shard is 8 MiB, once as read and once as written, and the allocator's slack.
    assert int(done.stdout) < 40 * 2**20


def test_an_error_of_half_a_step_of_bf16_is_not_rounded_away_again() -> None:
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    rough = noise.rough_in_bf16("a", weight)
    assert torch.equal(rough, noise.rough_in_bf16("a", weight))
    assert (rough != weight.float()).float().mean() > 0.99
    assert ((rough - weight.float()).abs() <= weight.float().abs() * 2.0**-8 + 1e-9).all()


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "falcon"])
def test_lines_heard_at_once_are_as_each_alone(family: str) -> None:
    model = build_family(family)
    probes = [
        Probe("short", (5, 6, 7), (8, 9)),
        Probe("long", tuple(range(20, 45)), (9, 10, 11, 12)),
        Probe("silent", (3, 4), ()),
    ]
    lines = hear(model, probes, frozenset({2}), max_new_tokens=6)
    for one, two in zip(follow(model, lines), follow(model, lines, at_once=True), strict=True):
        assert (one.probe, one.prompt, one.answer, one.greedy) == (
            two.probe,
            two.prompt,
            two.answer,
            two.greedy,
        )
        assert two.nats == pytest.approx(one.nats, abs=1e-5)
        assert two.leads == pytest.approx(one.leads, abs=1e-5)
