"""A merged model in its family's own layout: sharded safetensors, config, tokenizer, template.

Tensors are taken and written a shard at a time. Whether the result answers like what was
evaluated is the gate's question.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from transformers import PreTrainedTokenizerBase

from timechat.export.weights import Weights
from timechat.store.files import write_json

# Small enough that a laptop merges any model, large enough that a 70B model has some 70 files.
SHARD_BYTES = 2**31

Progress = Callable[[int], None]


def write_merged(
    weights: Weights,
    folder: Path,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress = lambda _: None,
) -> None:
    """Write the tensors under the names and in the number formats that the base has."""
    shards = list(plan_shards(weights, shard_bytes))
    place: dict[str, str] = {}
    for i, names in enumerate(shards, start=1):
        file = "model.safetensors"
        if len(shards) > 1:
            file = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        tensors = {name: weights.rounded(name).contiguous() for name in names}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        place |= dict.fromkeys(names, file)
        progress(len(names))
    if len(shards) > 1:
        index = {"metadata": {"total_size": weights.num_bytes}, "weight_map": place}
        write_json(folder / "model.safetensors.index.json", index)


def plan_shards(weights: Weights, shard_bytes: int) -> Iterator[list[str]]:
    """Names of tensors, in the base's order, that together stay below `shard_bytes`."""
    names: list[str] = []
    total = 0
    for name, entry in weights.entries.items():
        if names and total + entry.num_bytes > shard_bytes:
            yield names
            names, total = [], 0
        names.append(name)
        total += entry.num_bytes
    if names:
        yield names


def write_settings(
    weights: Weights, folder: Path, tokenizer: PreTrainedTokenizerBase, stops: Sequence[int]
) -> None:
    """Config, generation config, tokenizer and template, all naming the same stop tokens."""
    ids: dict[str, Any] = {"eos_token_id": stops[0] if len(stops) == 1 else list(stops)}
    for name in ("bos_token_id", "pad_token_id"):
        value = getattr(tokenizer, name, None)
        if value is not None:
            ids[name] = value
    config = {k: v for k, v in weights.config.items() if k != "_name_or_path"}
    write_json(folder / "config.json", {**config, **ids})
    # What was evaluated was the likeliest answer; a base's own sampling would be another chatbot.
    write_json(folder / "generation_config.json", {**ids, "do_sample": False})
    tokenizer.save_pretrained(folder)
    _name_plainly(folder / "tokenizer_config.json")


def _name_plainly(path: Path) -> None:
    """Take out what is true of this machine only."""
    content = json.loads(path.read_text("utf-8"))
    for key in ("is_local", "local_files_only", "name_or_path"):
        content.pop(key, None)
    write_json(path, content)
