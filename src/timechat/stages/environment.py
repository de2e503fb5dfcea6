"""What a run runs on: machine, libraries, code and base."""

from __future__ import annotations

import hashlib
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from timechat.model.load import Loaded, digest_folder
from timechat.model.machine import machine_name
from timechat.store.files import sha256

PACKAGES = ("timechat", "torch", "transformers", "tokenizers", "safetensors", "numpy", "scipy")


def environment(loaded: Loaded) -> dict[str, Any]:
    packages = {name: package_version(name) for name in PACKAGES}
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "machine": machine_name(),
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "packages": packages,
        "made_by": {**packages, "python": platform.python_version(), "code": code_digest()},
        "base": {
            "name": loaded.source.name,
            "folder": str(loaded.source.folder),
            "digest": digest_folder(loaded.source.folder),
        },
    }


def code_digest() -> str:
    """One SHA-256 over this package's own source."""
    root = Path(__file__).resolve().parent.parent
    total = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        total.update(f"{path.relative_to(root)}:{sha256(path)}\n".encode())
    return total.hexdigest()


def package_version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"
