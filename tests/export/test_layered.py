"""A model that does not fit is heard layer by layer, by the same rule and with the same figures."""

from __future__ import annotations

import json
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import FAMILIES, build_family, byte_tokenizer, write_family
from torch import Tensor

from timechat.conversation import Conversation, Message
from timechat.errors import ExportError
from timechat.export.gate import Probe, hear
from timechat.export.layered import Layered, build_shell, hear_layered
from timechat.model.adapt import adapters, attach
from timechat.model.load import digest_folder
from timechat.model.peft import save_adapter
from timechat.stages.exporting import export as stage
from timechat.stages.exporting import hearing, target
from timechat.stages.exporting.export import Exported, export
from timechat.store.files import read_json

STOPS = frozenset({2})
PROBES = [
    Probe(str(i), (1, 40 + i, 7, 90, *range(30, 30 + 3 * i)), (33, 12 + i, 2)) for i in range(4)
]
QUESTIONS = [
    Conversation(str(i), (Message("user", f"What is {i}?"), Message("assistant", f"It is {i}.")))
    for i in range(3)
]


@pytest.fixture(autouse=True)
def few_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hearing, "answer_conversations", lambda split: QUESTIONS)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_family(tmp_path / "base")


@pytest.fixture
def tuned(base: Path) -> Path:
    return write_adapter(base)


def write_adapter(base: Path, family: str = "llama") -> Path:
    folder = base.parent / "tuned"
    folder.mkdir()
    model = build_family(family)
    attach(model, 4, 8.0, "all")
    torch.manual_seed(3)
    for layer in adapters(model).values():
        torch.nn.init.normal_(layer.lora_b, std=0.1)
    save_adapter(model, folder, str(base), digest_folder(base), "all")
    byte_tokenizer().save_pretrained(folder)
    return folder


def let_only_a_layer_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target, "whole_bytes", lambda weights: 2**60)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_says_the_same_layer_by_layer_and_no_more_than_a_module_is_held(
    family: str,
) -> None:
    model = build_family(family).float()
    held = {name: p.detach() for name, p in model.named_parameters()}
    alive: weakref.WeakSet[Tensor] = weakref.WeakSet()
    most = 0

    def fetch(name: str) -> Tensor:
        nonlocal most
        value = held[name].clone()
        alive.add(value.untyped_storage())  # type: ignore[arg-type]
        most = max(most, sum(storage.nbytes() for storage in alive))  # type: ignore[attr-defined]
        return value

    layered = Layered(build_shell(model.config), fetch)
    found = hear_layered(layered, PROBES, STOPS, max_new_tokens=6)
    wanted = hear(model, PROBES, STOPS, max_new_tokens=6)
    for one, two in zip(found, wanted, strict=True):
        assert (one.probe, one.prompt, one.answer, one.greedy) == (
            two.probe, two.prompt, two.answer, two.greedy,
        )  # fmt: skip
        assert one.nats == pytest.approx(two.nats, abs=1e-4)
        assert one.leads == pytest.approx(two.leads, abs=1e-4)
    largest = max(p.numel() * 4 for p in held.values())
    assert most <= largest + 8192, "a module holds its weight and its bias"
    assert not alive
    assert all(p.is_meta for p in layered.shell.parameters())


def test_greedy_answers_need_fewer_passages_than_words_where_the_guess_is_good() -> None:
    model = build_family("llama").float()
    held = {name: p.detach() for name, p in model.named_parameters()}
    layered = Layered(build_shell(model.config), lambda name: held[name].clone())
    said = [line.answer for line in hear(model, PROBES, STOPS, max_new_tokens=12) if line.greedy]
    good = [Probe(p.id, p.prompt, answer) for p, answer in zip(PROBES, said, strict=True)]
    passages = 0
    score = layered.score

    def count(rows):
        nonlocal passages
        passages += 1
        return score(rows)

    layered.score = count  # type: ignore[method-assign]
    hear_layered(layered, good, STOPS, max_new_tokens=12)
    assert passages == 2, "one that confirms, one that weighs"


def test_a_weight_of_another_shape_is_refused() -> None:
    model = build_family("llama")
    layered = Layered(build_shell(model.config), lambda name: torch.zeros(3))
    with pytest.raises(ExportError, match="has the shape"):
        hear_layered(layered, PROBES, STOPS)


@pytest.mark.parametrize(
    ("form", "quantisation"),
    [("adapter", ""), ("merged", ""), ("gguf", "f16"), ("gguf", "q8_0"), ("gguf", "q4_0")],
)
def test_the_gate_judges_layer_by_layer_as_it_judges_whole_models(
    form: str, quantisation: str, tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = export(str(tuned), form, tmp_path / "whole", quantisation)
    let_only_a_layer_fit(monkeypatch)
    parts = export(str(tuned), form, tmp_path / "parts", quantisation)
    assert "layer by layer" in parts.notes[0]
    assert "layer by layer" not in whole.notes[0]
    assert same_files(tmp_path / "whole", tmp_path / "parts")
    assert parts.verdict.num_tokens == whole.verdict.num_tokens
    assert parts.verdict.gap == pytest.approx(whole.verdict.gap, rel=0.2, abs=1e-5)
    # Another draw of the same noise.
    allowed, before = parts.verdict.tolerance, whole.verdict.tolerance
    assert allowed.gap == pytest.approx(before.gap, rel=0.5)


def same_files(one: Path, two: Path) -> bool:
    told = ("README.md", "gate.json")  # where they say how they were compared
    names = sorted(path.name for path in one.iterdir())
    files = [(one / name, two / name) for name in names if name not in told]
    gguf = [pair for pair in files if pair[0].suffix == ".gguf"]
    return names == sorted(path.name for path in two.iterdir()) and all(
        a.read_bytes() == b.read_bytes() for a, b in files if (a, b) not in gguf
    )


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "falcon 40b", "gpt_neox", "phi3"])
def test_families_pass_the_gate_layer_by_layer(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = write_family(tmp_path / "base", family)
    tuned = write_adapter(base, family)
    let_only_a_layer_fit(monkeypatch)
    for form in ("merged", "gguf"):
        done: Exported = export(str(tuned), form, tmp_path / form)
        assert done.verdict.passed


@pytest.mark.parametrize("bits", [8, 4])
def test_an_adapter_that_learned_beside_codes_is_heard_beside_codes(
    bits: int, tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note = read_json(tuned / "base.json")
    (tuned / "base.json").write_text(json.dumps({**note, "bits": bits}))
    whole = export(str(tuned), "merged", tmp_path / "whole")
    let_only_a_layer_fit(monkeypatch)
    parts = export(str(tuned), "merged", tmp_path / "parts")
    assert whole.verdict.gap > 1e-3, "codes cost something"
    assert parts.verdict.gap == pytest.approx(whole.verdict.gap, rel=0.2)


@pytest.mark.parametrize("form", ["merged", "gguf"])
def test_another_model_is_refused_layer_by_layer_too(
    form: str, tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_only_a_layer_fit(monkeypatch)
    back = stage.layerwise._exported

    def other(*given):
        layered = back(*given)
        fetch = layered.fetch
        layered.fetch = lambda name: fetch(name).flip(0) if "down_proj" in name else fetch(name)
        return layered

    monkeypatch.setattr(stage.layerwise, "_exported", other)
    with pytest.raises(ExportError, match=r"\(likelihood\)"):
        export(str(tuned), form, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_must_be_measured_is_not_measured_layer_by_layer(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_only_a_layer_fit(monkeypatch)
    with pytest.raises(ExportError, match="--measure asks the whole model"):
        export(str(base), "merged", tmp_path / "out", measure=True)


def test_weights_under_other_names_are_not_heard_layer_by_layer(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_only_a_layer_fit(monkeypatch)
    tensors = load_file(base / "model.safetensors")
    tensors["model.elsewhere.weight"] = tensors.pop("model.norm.weight")
    save_file(tensors, base / "model.safetensors")
    with pytest.raises(ExportError, match="can only be heard whole"):
        export(str(base), "merged", tmp_path / "out")


GROWN = """
import json, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
sys.path[:0] = json.loads(sys.argv[3])
from timechat.stages.exporting import hearing
from timechat.stages.exporting import target
from timechat.stages.exporting.export import export
from test_layered import QUESTIONS
hearing.answer_conversations = lambda split: QUESTIONS
if sys.argv[4] == "layered":
    target.whole_bytes = lambda weights: 2**60

def status(name):
    text = Path("/proc/self/status").read_text()
    return int(next(l for l in text.splitlines() if l.startswith(name)).split()[1]) * 1024

from timechat.export import merged
merged.SHARD_BYTES = 2**24
merged.write_merged.__defaults__ = (2**24, merged.write_merged.__defaults__[1])
Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
export(sys.argv[1], "merged", Path(sys.argv[2]))
print(status("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_a_merge_and_its_gate_need_a_fraction_of_the_model(tmp_path: Path) -> None:
    """From outside: the peak of a process that merges 180 MB of weights in shards of 16."""
    size = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 14}
    base = write_family(tmp_path / "base", "llama untied", **size)
    tuned = tmp_path / "tuned"
    tuned.mkdir()
    model = build_family("llama untied", **size)
    attach(model, 2, 4.0, "all")
    save_adapter(model, tuned, str(base), digest_folder(base), "all")
    byte_tokenizer().save_pretrained(tuned)
    whole = sum(p.numel() * 4 for p in build_family("llama untied", **size).parameters())
    peaks: dict[str, int] = {}
    here = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
    for how in ("layered", "whole"):
        done = subprocess.run(
            [sys.executable, "-c", GROWN, str(tuned), str(tmp_path / how), json.dumps(here), how],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        peaks[how] = int(done.stdout.strip().rpartition("\n")[2])
    assert peaks["whole"] > whole
    assert peaks["layered"] < whole / 2, (peaks, whole)
