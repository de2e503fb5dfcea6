"""A GGUF file read back into a model: everything from the file, nothing from what wrote it.

The settings, the tensors and the tokenizer are those of the file, dequantised, so what is heard of
this model is what a reader of the file will get. transformers' own reader knows fewer families and
drops some settings; the tests hold this one against it and against llama.cpp.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from timechat.errors import ExportError
from timechat.export.families import FAMILIES, Family, attention_scale
from timechat.export.layered import Layered, build_shell
from timechat.export.rotary import FACTORS, LONG, SHORT, rotary_params, scale_frequencies
from timechat.export.vocabulary import Vocabulary

_SPECIALS = ("eos", "eot", "bos", "unknown", "padding")


@dataclass(frozen=True, slots=True)
class Contents:
    """A GGUF file: its keys, and its tensors by name, dequantised when asked for."""

    path: Path
    metadata: dict[str, Any]
    reader: GGUFReader

    def tensor(self, name: str) -> Tensor:
        """Values in fp32, in torch's order of axes."""
        found = next((t for t in self.reader.tensors if t.name == name), None)
        if found is None:
            raise ExportError(f"{self.path.name} has no tensor {name}")
        return _values(found)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        for found in self.reader.tensors:
            yield str(found.name), _values(found)

    @property
    def names(self) -> list[str]:
        return [str(found.name) for found in self.reader.tensors]


def open_gguf(path: Path) -> Contents:
    """Raises ExportError for a file that is no GGUF or is cut short."""
    try:
        reader = GGUFReader(path)
    except (ValueError, IndexError, OSError) as error:
        raise ExportError(f"{path} cannot be read as GGUF: {error}") from None
    metadata = {key: field.contents() for key, field in reader.fields.items()}
    return Contents(path, metadata, reader)


def vocabulary_of(contents: Contents) -> Vocabulary:
    """The tokenizer's part of the file."""
    found = {
        key.removeprefix("tokenizer.ggml."): value
        for key, value in contents.metadata.items()
        if key.startswith("tokenizer.ggml.")
    }
    ids = {name: found[f"{name}_token_id"] for name in _SPECIALS if f"{name}_token_id" in found}
    return Vocabulary(
        kind=found["model"],
        pre=found["pre"],
        tokens=tuple(found["tokens"]),
        types=tuple(found["token_type"]),
        scores=tuple(found.get("scores", ())),
        merges=tuple(found.get("merges", ())),
        add_space_prefix=bool(found.get("add_space_prefix", False)),
        special_ids=tuple(ids.items()),
        add_bos=bool(found["add_bos_token"]),
        template=contents.metadata["tokenizer.chat_template"],
    )


def config_of(contents: Contents) -> PretrainedConfig:
    """The model's config, from the file's keys and from which tensors it has."""
    name = contents.metadata["general.architecture"]
    kind, family = next((k, f) for k, f in FAMILIES.items() if f.name == name)
    keys = {
        key.removeprefix(f"{name}."): value
        for key, value in contents.metadata.items()
        if key.startswith(f"{name}.")
    }
    options: dict[str, Any] = {
        attribute: keys[key] for key, attribute in family.fields if key in keys
    }
    options |= {attribute: allowed[0] for attribute, allowed in family.assumed.items()}
    options |= _shown_by_tensors(kind, keys, set(contents.names))
    for given, attribute in (("eos", "eos"), ("bos", "bos"), ("padding", "pad")):
        options[f"{attribute}_token_id"] = contents.metadata.get(f"tokenizer.ggml.{given}_token_id")
    options["tie_word_embeddings"] = "output.weight" not in contents.names
    if "rope.freq_base" in keys:
        size = int(options.get("head_dim") or 0)
        size = size or int(options["hidden_size"]) // int(options["num_attention_heads"])
        tables = {n: contents.tensor(n) for n in (LONG, SHORT) if n in contents.names}
        _set_rotary(kind, options, rotary_params(keys, tables, size))
    return AutoConfig.for_model(kind, **options)


def load_gguf(contents: Contents, dtype: torch.dtype) -> PreTrainedModel:
    """The file as a transformers model, dequantised to `dtype`."""
    config = config_of(contents)
    family = FAMILIES[str(config.model_type)]
    with torch.device("meta"):
        shell = AutoModelForCausalLM.from_config(config)
    state = dict(_state(contents, family, config, shell, dtype))
    model = cast(
        PreTrainedModel,
        type(shell).from_pretrained(None, config=config, state_dict=state, dtype=dtype),
    )
    if FACTORS in contents.names:
        scale_frequencies(model, contents.tensor(FACTORS))
    return model.eval()


def open_layered(contents: Contents) -> Layered:
    """The file as a model whose tensors are dequantised one at a time."""
    config = config_of(contents)
    family = FAMILIES[str(config.model_type)]
    shell = build_shell(config)
    if FACTORS in contents.names:
        scale_frequencies(shell, contents.tensor(FACTORS))
    places = {own: name for name, own in _wanted(contents, family, config, shell).items()}

    def fetch(own: str) -> Tensor:
        return family.back(own, contents.tensor(places[own]), config).contiguous()

    return Layered(shell, fetch)


def _state(
    contents: Contents,
    family: Family,
    config: PretrainedConfig,
    shell: PreTrainedModel,
    dtype: torch.dtype,
) -> Iterator[tuple[str, Tensor]]:
    wanted = _wanted(contents, family, config, shell)
    for name, value in contents.tensors():
        if name in wanted:
            yield wanted[name], family.back(wanted[name], value, config).contiguous().to(dtype)


def _wanted(
    contents: Contents, family: Family, config: PretrainedConfig, shell: PreTrainedModel
) -> dict[str, str]:
    """The file's names to the model's. Raises ExportError for one that the file lacks."""
    names = family.names(config)
    wanted: dict[str, str] = {}
    for own in shell.state_dict():
        stem, _, leaf = own.rpartition(".")
        wanted[f"{names.get_name(stem)}.{leaf}"] = own
    # A head that is tied to the embedding has no tensor of its own, and in Gemma no name either.
    needed = {n for n in wanted if not config.tie_word_embeddings or wanted[n] != "lm_head.weight"}
    if left := needed - set(contents.names):
        raise ExportError(f"{contents.path.name} has no tensor {min(left)}")
    return wanted


def _shown_by_tensors(kind: str, keys: dict[str, Any], names: set[str]) -> dict[str, Any]:
    """Settings that a file says only by the tensors it holds."""
    if kind == "llama":
        return {
            "attention_bias": "blk.0.attn_q.bias" in names,
            "mlp_bias": "blk.0.ffn_gate.bias" in names,
        }
    if kind == "stablelm":
        return {"use_qkv_bias": "blk.0.attn_q.bias" in names}
    if kind == "falcon":
        groups, heads = int(keys["attention.head_count_kv"]), int(keys["attention.head_count"])
        two = "blk.0.attn_norm_2.weight" in names
        return {
            "new_decoder_architecture": two,
            "num_kv_heads": groups,
            "multi_query": groups == 1 and heads != 1,
        }
    if kind in ("gemma2", "gemma3_text"):
        return {"query_pre_attn_scalar": attention_scale(kind, keys)}
    return {"n_inner": keys["feed_forward_length"]} if kind == "gpt2" else {}


def _set_rotary(kind: str, options: dict[str, Any], params: dict[str, Any]) -> None:
    if kind != "gemma3_text":
        options["rope_parameters"] = params
        return
    local = {"rope_type": "default", "rope_theta": 10_000.0}
    options["rope_parameters"] = {"full_attention": params, "sliding_attention": local}


def _values(found: Any) -> Tensor:
    shape = tuple(int(size) for size in reversed(found.shape))
    flat = dequantize(found.data, found.tensor_type)
    return torch.from_numpy(np.array(flat, dtype=np.float32, copy=True)).reshape(shape)
