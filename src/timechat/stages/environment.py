"""What a run ran on: `environment.json`."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from timechat.model.load import Loaded, digest_folder
from timechat.model.machine import machine_name

PACKAGES = ("timechat", "torch", "transformers", "tokenizers", "safetensors", "numpy", "scipy")


def environment(loaded: Loaded) -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "machine": machine_name(),
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "packages": {name: package_version(name) for name in PACKAGES},
        "base": {
            "name": loaded.source.name,
            "folder": str(loaded.source.folder),
            "digest": digest_folder(loaded.source.folder),
        },
    }


def package_version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"
