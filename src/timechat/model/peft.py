"""PEFT's file format for low-rank adapters, in both directions, and what stands beside it.

Plain LoRA only: whatever else an adapter's configuration asks for is refused by name.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from timechat.errors import CheckpointError
from timechat.model.adapt import Base, LoraLinear, adapters, put
from timechat.model.choose import find_activation

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
# What stands beside the model in a checkpoint: what it was made from, and how.
BASE_NOTE = "base.json"
_PEFT_PREFIX = "base_model.model."


def peft_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """Every adapter's A and B by the name that PEFT's file gives them."""
    return {
        _peft_name(name, part): parameter
        for name, layer in adapters(model).items()
        for part, parameter in layer.parts()
    }


def _peft_name(layer: str, part: str) -> str:
    return f"{_PEFT_PREFIX}{layer}.lora_{part}.weight"


def save_adapter(
    model: nn.Module, folder: Path, base_path: str, base_digest: str, targets: str
) -> None:
    """Write the adapter as PEFT does: `adapter_config.json` and `adapter_model.safetensors`."""
    layers = adapters(model)
    first = next(iter(layers.values()))
    tensors = {name: p.detach().cpu().contiguous() for name, p in peft_weights(model).items()}
    save_file(tensors, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_path,
        "r": first.rank,
        "lora_alpha": first.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        # What PEFT calls a weight that is held as (in, out).
        "fan_in_fan_out": any(isinstance(x.base, Conv1D) for x in layers.values()),
        "inference_mode": True,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
        # Full names, so that nothing but what was trained is ever adapted.
        "target_modules": sorted(layers),
        "timechat": {
            "base_digest": base_digest,
            "targets": targets,
            # The run's own, where it changed the base's: `load` puts it back.
            "activation": find_activation(model),
            "bits": getattr(first.base, "bits", None),
        },
    }
    # PEFT refuses keys it does not know, so ours stand beside its file.
    ours = config.pop("timechat")
    (folder / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    (folder / BASE_NOTE).write_text(json.dumps({"path": base_path, **ours}, indent=2) + "\n")


def read_adapter(folder: Path) -> tuple[float, dict[str, tuple[Tensor, Tensor]]]:
    """The scale, and A (r, in) and B (out, r) of each layer, of the PEFT LoRA in `folder`.

    Raises CheckpointError for anything but a plain LoRA.
    """
    config = json.loads((folder / ADAPTER_CONFIG).read_text())
    if config.get("peft_type") != "LORA" or config.get("use_dora"):
        raise CheckpointError(f"{folder} holds a {config.get('peft_type')} adapter; LoRA is known")
    for key in ("alpha_pattern", "rank_pattern", "modules_to_save"):
        if config.get(key):
            raise CheckpointError(f"{folder} uses {key}, which is not known here: plain LoRA is")
    tensors = load_file(folder / ADAPTER_WEIGHTS)
    rank, alpha = int(config["r"]), float(config["lora_alpha"])
    if config.get("use_rslora"):
        alpha *= math.sqrt(rank)
    names = {
        key.removeprefix(_PEFT_PREFIX).rsplit(".lora_", 1)[0] for key in tensors if ".lora_" in key
    }
    layers: dict[str, tuple[Tensor, Tensor]] = {}
    for name in sorted(names):
        keys = [_peft_name(name, part) for part in "AB"]
        if not all(key in tensors for key in keys) or tensors[keys[0]].shape[0] != rank:
            raise CheckpointError(f"{folder}: {keys} is missing or has the wrong shape")
        layers[name] = (tensors[keys[0]], tensors[keys[1]])
    return alpha / rank, layers


def load_adapter(model: nn.Module, folder: Path) -> None:
    """Attach the PEFT LoRA adapter in `folder`, ours or PEFT's own.

    Raises CheckpointError for anything but a plain LoRA whose tensors fit the model exactly.
    """
    scale, layers = read_adapter(folder)
    model.requires_grad_(False)
    for name, pair in layers.items():
        rank = pair[0].shape[0]
        layer = LoraLinear(_linear(model, name), rank, scale * rank)
        for (part, parameter), value in zip(layer.parts(), pair, strict=True):
            if value.shape != parameter.shape:
                raise CheckpointError(
                    f"{folder}: {_peft_name(name, part)} is missing or has the wrong shape"
                )
            parameter.data.copy_(value)
        put(model, name, layer)


def _linear(model: nn.Module, name: str) -> Base:
    try:
        layer = model.get_submodule(name)
    except AttributeError:
        layer = None
    if not isinstance(layer, Base):
        raise CheckpointError(f"the base model has no linear layer {name!r}: another base?")
    return layer
