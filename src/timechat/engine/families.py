"""Which models `graph.py` can build, and where what engines read lies, told without loading any."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

Bits = Literal[4, 8]
# Raised when `graph.py` changes what it writes, so that older folders are built anew.
FORMAT = 3
# The same for the files that the llama engine reads.
GGUF_FORMAT = 1
FAMILIES = ("llama", "mistral", "qwen2")


def refusal(config: Any) -> str:
    """Why this model has no graph here; empty where it has."""
    if config.model_type not in FAMILIES:
        return f"models of the family {config.model_type!r} are not built for OpenVINO here"
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") != "default":
        return f"rotary positions of the type {rope['rope_type']!r} are not built for OpenVINO here"
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        return "a sliding attention window is not built for OpenVINO here"
    if config.hidden_act != "silu":
        return f"the activation {config.hidden_act!r} is not built for OpenVINO here"
    return ""


def compiled_folder(digest: str, bits: int, cache: Path) -> Path:
    """Where the compiled model of this digest lies, once it is built."""
    return cache / "openvino" / f"{digest[:24]}-{bits}bit-v{FORMAT}"


def gguf_file(digest: str, bits: int, cache: Path) -> Path:
    """Where the GGUF of this digest lies, once it is written."""
    return cache / "gguf" / f"{digest[:24]}-{bits}bit-v{GGUF_FORMAT}" / "model.gguf"
