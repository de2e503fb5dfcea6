"""Every family, written and read back by three readers: ours, transformers, llama.cpp."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import FAMILIES, build_family, write_family
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig

from timechat.errors import ExportError
from timechat.export import ggufile, inspection
from timechat.export.readback import load_gguf, open_gguf, vocabulary_of
from timechat.export.vocabulary import read_vocabulary
from timechat.export.weights import Weights
from timechat.model.render import Renderer

IDS = torch.tensor([[5, 9, 200, 31, 7, 7, 90, 450, 33, 12]])
# What transformers' own GGUF reader (5.23) takes from a file; the others' settings it drops.
THEIRS = ["llama", "llama untied", "mistral", "qwen2", "stablelm", "falcon", "phi3"]


def write(folder: Path, quantisation: str, target: Path) -> Path:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    renderer = Renderer(tokenizer)
    config = AutoConfig.from_pretrained(folder)
    vocabulary = read_vocabulary(tokenizer, [2], config.vocab_size)
    path = target / f"{quantisation}.gguf"
    ggufile.write_gguf(path, Weights(folder), config, vocabulary, quantisation, "tiny")
    contents = open_gguf(path)
    assert vocabulary_of(contents) == vocabulary
    inspection.check_vocabulary(vocabulary, renderer, [])
    inspection.check_gguf_tensors(contents, Weights(folder), config, quantisation)
    return path


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits[0].float()


@pytest.mark.parametrize("name", FAMILIES)
def test_a_file_read_back_is_the_model_that_was_written(name: str, tmp_path: Path) -> None:
    path = write(write_family(tmp_path / "base", name), "f32", tmp_path)
    found = logits(load_gguf(open_gguf(path), torch.float32))
    # Falcon and GPT-NeoX use the exact GELU, GGUF's readers the tanh form of it.
    torch.testing.assert_close(found, logits(build_family(name)), rtol=1e-3, atol=3e-3)


@pytest.mark.parametrize("quantisation", ggufile.QUANTISATIONS)
@pytest.mark.parametrize("name", ["llama", "gpt_neox", "gemma3"])
def test_every_quantisation_stays_within_its_rounding(
    name: str, quantisation: str, tmp_path: Path
) -> None:
    path = write(write_family(tmp_path / "base", name), quantisation, tmp_path)
    expected = logits(build_family(name))
    found = logits(load_gguf(open_gguf(path), torch.float32))
    error = float((found - expected).std() / expected.std())
    assert error < {"f32": 1e-3, "f16": 3e-3, "bf16": 0.02, "q8_0": 0.06}.get(quantisation, 0.9)


@pytest.mark.parametrize("name", THEIRS)
def test_transformers_reads_the_same_model(name: str, tmp_path: Path) -> None:
    path = write(write_family(tmp_path / "base", name), "f32", tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path,
        gguf_file=path.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    )
    torch.testing.assert_close(logits(theirs), logits(build_family(name)), rtol=1e-3, atol=3e-3)


@pytest.mark.slow
@pytest.mark.parametrize("quantisation", ["f32", "q8_0"])
@pytest.mark.parametrize("name", FAMILIES)
def test_llama_cpp_reads_the_same_model(name: str, quantisation: str, tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    path = write(write_family(tmp_path / "base", name), quantisation, tmp_path)
    llama = llama_cpp.Llama(str(path), n_ctx=64, logits_all=True, verbose=False, n_threads=1)
    llama.eval(IDS[0].tolist())
    found = torch.tensor(llama.scores[: IDS.shape[1]]).float()
    llama.close()
    expected = logits(build_family(name))
    error = float((found - expected).std() / expected.std())
    assert error < (0.01 if quantisation == "f32" else 0.1)


def test_what_a_family_takes_for_granted_is_refused_when_it_is_otherwise(tmp_path: Path) -> None:
    config = AutoConfig.for_model("llama", hidden_act="gelu")
    with pytest.raises(ExportError, match="hidden_act = 'gelu'"):
        ggufile.settings(config)
    with pytest.raises(ExportError, match="opt model cannot be written as GGUF"):
        ggufile.settings(AutoConfig.for_model("opt"))
    wide = AutoConfig.for_model("qwen2", hidden_size=64, num_attention_heads=4, head_dim=32)
    with pytest.raises(ExportError, match="heads of 32, and a GGUF file"):
        ggufile.settings(wide)
    gemma = AutoConfig.for_model("gemma2", query_pre_attn_scalar=7)
    with pytest.raises(ExportError, match="query_pre_attn_scalar = 7"):
        ggufile.settings(gemma)
    dynamic = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    with pytest.raises(ExportError, match="'dynamic'"):
        ggufile.settings(AutoConfig.for_model("llama", rope_parameters=dynamic))


# What openvino-genai's own GGUF reader (2026.4) takes; Llama 3's stretched positions it drops.
OPENVINO = {"llama": {}, "llama untied": {}, "qwen2": {}, "qwen3": {"head_dim": 64}}


@pytest.mark.slow
@pytest.mark.parametrize("quantisation", ["f16", "q8_0"])
@pytest.mark.parametrize("name", OPENVINO)
def test_openvino_genai_answers_the_same_from_the_file(
    name: str, quantisation: str, tmp_path: Path
) -> None:
    genai = pytest.importorskip("openvino_genai", reason="openvino-genai is not installed")
    openvino = pytest.importorskip("openvino", reason="openvino is not installed")
    sizes = {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1}
    folder = write_family(tmp_path / "base", name, **sizes, **OPENVINO[name])
    path = write(folder, quantisation, tmp_path)
    exact = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
    pipeline = genai.LLMPipeline(str(path), "CPU", DYNAMIC_QUANTIZATION_GROUP_SIZE="0", **exact)
    asked = genai.GenerationConfig()
    asked.max_new_tokens, asked.ignore_eos, asked.do_sample = 8, True, False
    said = pipeline.generate(openvino.Tensor(IDS.numpy()), asked).tokens[0]
    model = load_gguf(open_gguf(path), torch.float32)
    ids = IDS
    for _ in range(8):
        with torch.no_grad():
            best = model(input_ids=ids).logits[:, -1].argmax(-1, keepdim=True)
        ids = torch.cat([ids, best], 1)
    assert list(said) == ids[0, IDS.shape[1] :].tolist()
