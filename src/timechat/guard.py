"""May this folder of model files be read? The one place that looks before anything is loaded.

A model folder comes from strangers. Loaders here read safetensors and JSON only and never run code;
this file refuses what would make even those readers go wrong: links that leave the folder, headers
that lie, JSON that only wants to be large, and code that waits to be run. Whether the model in it
is any good is for its loader.
"""

from __future__ import annotations

import json
import os
import stat
import struct
from collections.abc import Mapping
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

from timechat.errors import ModelError

# safetensors' own limit, and several times what the largest open models' files hold.
MAX_HEADER_BYTES = 100_000_000
# tokenizer.json of a vocabulary of 262,144 is 33 MB; every other JSON file stays far below.
MAX_JSON_BYTES = 128_000_000
MAX_CONFIG_BYTES = 4_000_000
ELEMENT_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32,
    "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64, "C64": 64, "F8_E4M3": 8, "F8_E5M2": 8,
    "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip
# Settings by which a loader sizes what it builds, and more than any model has.
SIZES = {
    "num_hidden_layers": 10_000, "num_attention_heads": 100_000, "num_key_value_heads": 100_000,
    "hidden_size": 1_000_000, "intermediate_size": 10_000_000, "vocab_size": 100_000_000,
    "n_layer": 10_000, "n_embd": 1_000_000, "r": 100_000,
}  # fmt: skip


def check_model_folder(folder: Path) -> None:
    """Raise ModelError, naming the file and what is wrong with it, unless `folder` may be read."""
    for path in sorted(folder.iterdir()):
        if path.name == "state" or path.name.startswith("."):
            continue  # not read when a model is loaded
        check_entry(path, folder)
        if path.suffix == ".py":
            raise ModelError(
                f"{path} is code beside a model: it is never run; take it out of the folder"
            )
        if path.suffix == ".safetensors":
            read_header(path)
        elif path.suffix == ".json":
            _check_json(path)


def check_entry(path: Path, folder: Path) -> None:
    """`path` is a file or folder that lies in `folder`, or in the Hub cache's own store."""
    if path.is_symlink():
        target = path.resolve()
        inside = target.is_relative_to(folder.resolve())
        # The Hub's cache links snapshots/REVISION/name to blobs/DIGEST.
        blobs = folder.resolve().parent.parent / "blobs"
        if not (inside or target.parent == blobs):
            raise ModelError(
                f"{path} is a link that leaves the folder (to {os.readlink(path)}): put the file "
                "itself there"
            )
        if not target.exists():
            raise ModelError(f"{path} is a link to nothing ({os.readlink(path)})")
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise ModelError(f"{path} is neither a file nor a folder: take it out")


def read_header(path: Path) -> dict[str, Any]:
    """The header of a safetensors file whose claims about itself are true.

    The tensors must cover the rest of the file exactly, without overlap, each as long as its
    shape says (https://huggingface.co/docs/safetensors). Raises ModelError.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else -1
        if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
            raise ModelError(
                f"{path} is no safetensors file: its header claims {max(length, 0):,} bytes of "
                f"{size:,} (at most {MAX_HEADER_BYTES:,})"
            )
        header = _parse(file.read(length), path)
    header.pop("__metadata__", None)
    spans = sorted(_span(path, name, claim) for name, claim in header.items())
    whole = size - 8 - length
    ends = [(0, 0), *spans, (whole, whole)]
    for (_, end), (begin, _) in pairwise(ends):
        if begin != end:
            what = "overlap" if begin < end else "leave a hole"
            raise ModelError(
                f"{path} is damaged: its tensors {what} at byte {begin:,} of {whole:,}"
            )
    return header


def read_config(path: Path) -> dict[str, Any]:
    """A small JSON mapping, such as config.json. Raises ModelError, naming the file."""
    size = path.stat().st_size
    if size > MAX_CONFIG_BYTES:
        raise ModelError(f"{path} has {size:,} bytes; at most {MAX_CONFIG_BYTES:,} are read")
    return _parse(path.read_bytes(), path)


def _span(path: Path, name: str, claim: Any) -> tuple[int, int]:
    """Where a tensor lies, when its claim adds up."""
    try:
        bits, shape = ELEMENT_BITS[claim["dtype"]], claim["shape"]
        begin, end = claim["data_offsets"]
        whole_numbers = all(type(n) is int and n >= 0 for n in (begin, end, *shape))
    except (KeyError, TypeError, ValueError):
        whole_numbers = False
        bits = begin = end = 0
        shape: list[int] = []
    if not whole_numbers or (end - begin) * 8 != prod(shape) * bits:
        raise ModelError(f"{path} is damaged: what it says of tensor {name!r} does not add up")
    return begin, end


def _check_json(path: Path) -> None:
    size = path.stat().st_size
    if size > MAX_JSON_BYTES:
        raise ModelError(f"{path} has {size:,} bytes; at most {MAX_JSON_BYTES:,} are read")
    if size > MAX_CONFIG_BYTES:
        return  # a vocabulary; its reader has limits of its own
    content = _parse_any(path.read_bytes(), path)
    if not isinstance(content, dict):
        return
    if "auto_map" in content:
        raise ModelError(f"{path} wants to run its own code (auto_map); that is never done")
    _check_sizes(path, content)
    if path.name.endswith(".index.json"):
        _check_index(path, content)


def _check_sizes(path: Path, content: Mapping[str, Any]) -> None:
    for key, most in SIZES.items():
        value = content.get(key)
        if isinstance(value, int | float) and not 0 <= value <= most:
            raise ModelError(f"{path} says {key} = {value:,}; no model has more than {most:,}")


def _check_index(path: Path, content: Mapping[str, Any]) -> None:
    """Every shard that the index names is a file of this folder."""
    shards = content.get("weight_map")
    for name in sorted(set(map(str, shards.values()))) if isinstance(shards, dict) else []:
        if Path(name).name != name:
            raise ModelError(f"{path} names {name!r}, which is not in its folder")
        if not (path.parent / name).is_file():
            raise ModelError(f"{path} names {name}, which is missing")


def _parse(text: bytes, path: Path) -> dict[str, Any]:
    found = _parse_any(text, path)
    if not isinstance(found, dict):
        raise ModelError(f"{path} holds a {type(found).__name__}, not a mapping")
    return found


def _parse_any(text: bytes, path: Path) -> Any:
    try:
        return json.loads(text)
    except RecursionError:
        raise ModelError(f"{path} is nested too deep to be read") from None
    except ValueError as error:
        raise ModelError(f"{path} is not readable JSON: {error}") from None
