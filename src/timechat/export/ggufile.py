"""Writing a GGUF file: settings, vocabulary, then tensor after tensor, each quantised as it passes.

What the names and turns are is `families`' knowledge, the tokenizer's part `vocabulary`'s. Only
the tensor being written is in memory.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType
from torch import Tensor
from transformers import PretrainedConfig

from timechat.errors import ExportError
from timechat.export.families import Family, family_of
from timechat.export.rotary import head_size_of, rotary_keys
from timechat.export.turns import falcon_kv_heads
from timechat.export.vocabulary import Vocabulary
from timechat.export.weights import Weights

Progress = Callable[[int], None]
Kind = GGMLQuantizationType

# What `--quantize` may name: the type of the large matrices, and the file's own label.
QUANTISATIONS: dict[str, tuple[Kind, LlamaFileType]] = {
    "f32": (Kind.F32, LlamaFileType.ALL_F32),
    "f16": (Kind.F16, LlamaFileType.MOSTLY_F16),
    "bf16": (Kind.BF16, LlamaFileType.MOSTLY_BF16),
    "q8_0": (Kind.Q8_0, LlamaFileType.MOSTLY_Q8_0),
    "q5_1": (Kind.Q5_1, LlamaFileType.MOSTLY_Q5_1),
    "q5_0": (Kind.Q5_0, LlamaFileType.MOSTLY_Q5_0),
    "q4_1": (Kind.Q4_1, LlamaFileType.MOSTLY_Q4_1),
    "q4_0": (Kind.Q4_0, LlamaFileType.MOSTLY_Q4_0),
}
_EMBEDDING, _HEAD, _POSITIONS = "token_embd.weight", "output.weight", "position_embd.weight"
_LARGEST_F16 = 65504.0
# Families whose attention llama.cpp runs without the window that they were trained with: within
# the window it is the same, so that is how far their file says they can see.
_UNWINDOWED = ("mistral", "qwen2", "qwen3", "phi3")


@dataclass(frozen=True, slots=True)
class Slot:
    """One tensor of the file: its name there, where it comes from, and how it is stored.

    `source` is the name among the weights, or a tensor that the settings call for.
    """

    name: str
    source: str | Tensor
    shape: tuple[int, ...]
    kind: Kind

    @property
    def num_bytes(self) -> int:
        return int(np.prod(gguf.quant_shape_to_byte_shape(self.shape, self.kind)))


def plan_slots(weights: Weights, config: PretrainedConfig, quantisation: str) -> list[Slot]:
    """Every tensor of the file. Raises ExportError for one that the family does not name."""
    family = family_of(config)
    slots = [
        Slot(name, source, _shape(weights, source, family, config), Kind.F32)
        for source, name in file_names(weights, family, config).items()
    ]
    slots = [
        Slot(s.name, s.source, s.shape, choose_kind(s.name, s.shape, quantisation)) for s in slots
    ]
    _, extra = rotary_keys(config)
    return [*slots, *(Slot(n, t, tuple(t.shape), Kind.F32) for n, t in extra.items())]


def file_names(weights: Weights, family: Family, config: PretrainedConfig) -> dict[str, str]:
    """The weights' names to the file's. A head that is tied to the embedding is left out."""
    names = family.names(config)
    found: dict[str, str] = {}
    for source in weights.entries:
        stem, _, leaf = source.rpartition(".")
        target = names.get_name(stem)
        if target is None:
            raise ExportError(
                f"{source} has no place in a GGUF file of a {config.model_type} model"
            )
        if target == "output" and config.tie_word_embeddings:
            continue
        found[source] = f"{target}.{leaf}"
    return found


def choose_kind(name: str, shape: tuple[int, ...], quantisation: str) -> Kind:
    """How a tensor is stored: vectors whole, matrices as asked; the vocabulary's at 8 bits at
    least, since its error reaches every word; rows that do not fill a block at 16 bits."""
    kind = QUANTISATIONS[quantisation][0]
    if len(shape) < 2 or name == _POSITIONS:
        return Kind.F32
    if kind not in (Kind.F32, Kind.F16, Kind.BF16):
        if name in (_EMBEDDING, _HEAD):
            kind = Kind.Q8_0
        if shape[-1] % gguf.GGML_QUANT_SIZES[kind][0]:
            return Kind.F16
    return kind


def file_value(slot: Slot, weights: Weights, config: PretrainedConfig) -> Tensor:
    """The slot's values in fp32, turned as the file has them, before they are quantised."""
    if isinstance(slot.source, Tensor):
        return slot.source
    value = family_of(config).turn(slot.source, weights.exact(slot.source), config)
    return value.contiguous()


def write_gguf(
    path: Path,
    weights: Weights,
    config: PretrainedConfig,
    vocabulary: Vocabulary | None,
    quantisation: str,
    name: str,
    progress: Progress = lambda _: None,
) -> None:
    """Write the whole file at `path`; without a `vocabulary` for who has the tokenizer anyway."""
    slots = plan_slots(weights, config, quantisation)
    writer = GGUFWriter(path, family_of(config).name)
    try:
        for key, value in settings(config).items():
            _add(writer, f"{writer.arch}.{key}", value)
        _add_general(writer, name, quantisation)
        if vocabulary is None:
            writer.add_tokenizer_model("none")
        else:
            _add_vocabulary(writer, vocabulary)
        for slot in slots:
            writer.add_tensor_info(
                slot.name, slot.shape, np.dtype(np.float32), slot.num_bytes, slot.kind
            )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for slot in slots:
            writer.write_tensor_data(quantise(slot, file_value(slot, weights, config)))
            progress(1)
    except OSError as error:
        if error.errno is None:  # numpy gives no reason where less was written than it asked for
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise
    finally:
        writer.close()


def quantise(slot: Slot, value: Tensor) -> np.ndarray[Any, Any]:
    """The values as the slot's kind stores them. Raises ExportError where they cannot be."""
    if not torch.isfinite(value).all():
        raise ExportError(f"{slot.name} holds values that are not finite: nothing was exported")
    if slot.kind == Kind.F16 and float(value.abs().max()) > _LARGEST_F16:
        raise ExportError(f"{slot.name} holds values beyond f16's range: use --quantize bf16")
    return gguf.quants.quantize(value.numpy(), slot.kind)


def settings(config: PretrainedConfig) -> dict[str, Any]:
    """The model's settings under GGUF's keys, without the architecture before them."""
    family = family_of(config)
    keys: dict[str, Any] = {}
    for key, attribute in family.fields:
        value = getattr(config, attribute, None)
        if attribute == "head_dim" and value is None:
            value = head_size_of(config)
        if value is not None:
            keys[key] = value
    kind = str(config.model_type)
    window = getattr(config, "sliding_window", None)
    if kind in _UNWINDOWED and window:
        keys["context_length"] = min(int(config.max_position_embeddings), int(window))
    keys.setdefault("attention.head_count_kv", int(config.num_attention_heads))
    if kind == "falcon":
        keys |= {
            "attention.head_count_kv": falcon_kv_heads(config),
            "tensor_data_layout": "jploski",
        }
    elif kind == "gpt2":
        keys["feed_forward_length"] = int(config.n_inner or 4 * config.hidden_size)
    elif kind == "phi3":
        keys["attention.sliding_window"] = 0
    rotary, _ = rotary_keys(config)
    return keys | rotary


def _shape(
    weights: Weights, source: str, family: Family, config: PretrainedConfig
) -> tuple[int, ...]:
    """The shape after turning, found without reading: turns only move what is there."""
    entry = weights.entries[source]
    turned = family.turn(source, torch.empty(entry.shape, device="meta"), config)
    return tuple(turned.shape)


def _add(writer: GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_string(key, str(value))


def _add_general(writer: GGUFWriter, name: str, quantisation: str) -> None:
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(name)
    writer.add_file_type(QUANTISATIONS[quantisation][1])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    # The likeliest word, unpenalised: how the model was evaluated.
    writer.add_sampling_temp(0.0)
    writer.add_sampling_penalty_repeat(1.0)


def _add_vocabulary(writer: GGUFWriter, vocabulary: Vocabulary) -> None:
    writer.add_tokenizer_model(vocabulary.kind)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(list(vocabulary.tokens))
    writer.add_token_types(list(vocabulary.types))
    if vocabulary.scores:
        writer.add_token_scores(list(vocabulary.scores))
        writer.add_add_space_prefix(vocabulary.add_space_prefix)
    if vocabulary.merges:
        writer.add_token_merges(list(vocabulary.merges))
    for name, value in vocabulary.special_ids:
        writer.add_uint32(f"tokenizer.ggml.{name}_token_id", value)
    writer.add_add_bos_token(vocabulary.add_bos)
    writer.add_add_eos_token(False)
    writer.add_chat_template(vocabulary.template)
