"""A model's tensors with its adapter folded in, one at a time.

Nothing but the adapter and the one tensor asked for is ever in memory, so a 70B merge runs where
its largest tensor fits. What the tensors are written as is for `merged` and `ggufile`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from timechat.errors import CheckpointError, ExportError
from timechat.model.peft import read_adapter
from timechat.model.quantise import pack_codes, unpack_codes

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
# What old checkpoints carry beside their weights: tables that every library works out itself.
_TABLES = (".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias", ".attention.bias",
           ".attention.masked_bias", ".attention.rotary_emb.inv_freq")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a tensor stands, and what it is."""

    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


class Weights:
    """The tensors of `folder` under the names they have there, with `adapter` folded in.

    Raises ExportError for a quantised base, CheckpointError for an adapter of another model.
    """

    def __init__(self, folder: Path, adapter: Path | None = None) -> None:
        self.folder = folder
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text("utf-8"))
        quantised = self.config.get("quantization_config")
        if quantised:
            raise ExportError(
                f"the weights in {folder} are already quantised "
                f"({quantised.get('quant_method', 'unknown')}): export from the unquantised base"
            )
        self.entries = dict(_entries(folder))
        self._scale, layers = (0.0, {}) if adapter is None else read_adapter(adapter)
        # GPT-2's files hold linear layers as (in, out).
        self._is_turned = self.config.get("model_type") in ("gpt2",)
        self._layers = {self._find(name): pair for name, pair in layers.items()}

    @property
    def num_bytes(self) -> int:
        return sum(entry.num_bytes for entry in self.entries.values())

    @property
    def adapted(self) -> list[str]:
        """The tensors that the adapter changes."""
        return list(self._layers)

    @property
    def dtype(self) -> torch.dtype:
        """The number format that most of the weights have."""
        sizes: dict[torch.dtype, int] = {}
        for entry in self.entries.values():
            sizes[entry.dtype] = sizes.get(entry.dtype, 0) + entry.num_bytes
        return max(sizes, key=lambda dtype: sizes[dtype])

    def exact(self, name: str) -> Tensor:
        """The tensor in fp32 with the adapter's share added, not rounded."""
        return self._adapted(name, self._read(name).float())

    def seen(self, name: str, dtype: torch.dtype, bits: int = 0) -> Tensor:
        """The tensor in fp32 as a run sees it: the base rounded to `dtype`, and to codes of `bits`
        where it trains beside those, the adapter's share added unrounded."""
        value = self._read(name).to(dtype)
        if bits:
            place = (value.T if self._is_turned else value).contiguous()
            shape = (place.shape[0], place.shape[1])
            place = unpack_codes(*pack_codes(place, bits), bits, shape, torch.float32)
            value = place.T.contiguous() if self._is_turned else place
        return self._adapted(name, value.float())

    def rounded(self, name: str) -> Tensor:
        """The tensor in the base's own number format: rounded once, and only where it changed."""
        if name not in self._layers:
            return self._read(name)
        return self.exact(name).to(self.entries[name].dtype)

    def _adapted(self, name: str, value: Tensor) -> Tensor:
        """`value` with the adapter's share added, in place."""
        pair = self._layers.get(name)
        if pair is not None:
            a, b = pair
            place = value.T if self._is_turned else value
            place.addmm_(b.float(), a.float(), alpha=self._scale)
        return value

    def _read(self, name: str) -> Tensor:
        with safe_open(self.entries[name].file, framework="pt") as file:
            return file.get_tensor(name)

    def _find(self, layer: str) -> str:
        """The file's name for an adapted layer's weight: with or without the model's prefix."""
        names = [f"{layer}.weight", f"{layer.partition('.')[2]}.weight"]
        for name in names:
            if name in self.entries:
                return name
        raise CheckpointError(
            f"the adapter changes {layer}, which {self.folder} does not hold: another base?"
        )


def _entries(folder: Path) -> Iterator[tuple[str, Entry]]:
    """Every tensor of every shard, in the index's order where there is one."""
    seen: set[str] = set()
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as shard:
            for name in shard.keys():  # noqa: SIM118 (no mapping, whatever it looks like)
                if name in seen:
                    raise ExportError(f"{folder} holds {name} twice: remove the stale shards")
                seen.add(name)
                if name.endswith(_TABLES):
                    continue
                part = shard.get_slice(name)
                kind = str(part.get_dtype())
                if kind not in _DTYPES:
                    raise ExportError(f"{folder}: {name} is {kind}, already quantised")
                yield name, Entry(file, tuple(part.get_shape()), _DTYPES[kind])
