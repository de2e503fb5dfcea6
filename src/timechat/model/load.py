"""Names to models: `starter`, a folder, a Hub id, a run, a checkpoint.

Only safetensors are read and no remote code runs. Rendering belongs to `render`, adapters to
`adapt`; this file puts them together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, cast

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from timechat.errors import CheckpointError, ModelError, RunError
from timechat.guard import check_model_folder, read_config, read_header
from timechat.manifest import MANIFEST, newest, verify
from timechat.model.adapt import output_head
from timechat.model.choose import find_activation, set_activation
from timechat.model.digest import digest_folder as digest_folder
from timechat.model.digest import find_moved
from timechat.model.fused import fuse
from timechat.model.kernels import keep_few_kernels
from timechat.model.number_format import pick_dtype
from timechat.model.peft import ADAPTER_CONFIG, BASE_NOTE, load_adapter
from timechat.model.quantise import quantise
from timechat.model.render import Renderer
from timechat.model.starter import FOLDER, starter_folder

transformers_logging.disable_progress_bar()
transformers_logging.set_verbosity_error()


@dataclass(frozen=True, slots=True)
class Source:
    """Where a model's files are: `folder` of the base, and an adapter's folder on top or None."""

    name: str
    folder: Path
    adapter: Path | None = None


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model ready to run, with its tokenizer and renderer."""

    source: Source
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    renderer: Renderer


def resolve(name: str, say: Callable[[str], None] = lambda _: None) -> Source:
    """The files behind a MODEL name of the command line.

    Raises ModelError or RunError, naming what is missing.
    """
    if name == "starter":
        return Source(name, starter_folder(say))
    if name.startswith(("http://", "https://")):
        raise ModelError(f"{name} is an endpoint: its weights are needed here; name a local model")
    path, _, step = name.partition("@")
    folder = Path(path)
    if step or (folder / "recipe.yaml").is_file():
        folder = run_checkpoint(folder, step)
    if (folder / MANIFEST).is_file():
        folder = whole_checkpoint(folder, None if step else Path(path), say)
    if (folder / ADAPTER_CONFIG).is_file():
        return _adapter_source(name, folder, say)
    if folder.is_dir():
        return Source(name, checked_folder(folder))
    if folder.is_absolute() or path.startswith((".", "~")) or path.count("/") > 1:
        raise ModelError(f"no model at {name}: the folder does not exist")
    return Source(name, _hub_folder(name))


def run_checkpoint(run: Path, step: str = "") -> Path:
    """The checkpoint folder of RUN (its best) or of RUN@step-N."""
    if not run.is_dir():
        raise RunError(f"no run at {run}")
    if not step:
        best = run / "best"
        if not best.exists():
            raise RunError(f"{run} has no best checkpoint yet: has it been trained?")
        return best.resolve()
    number = step.removeprefix("step-")
    kept = sorted(p.name for p in (run / "checkpoints").glob("step-*"))
    if number.isdigit():
        folder = run / "checkpoints" / f"step-{int(number):06d}"
        if folder.is_dir():
            return folder
    raise RunError(f"{run} has no checkpoint {step!r}; kept: {', '.join(kept) or 'none'}")


def whole_checkpoint(folder: Path, run: Path | None, say: Callable[[str], None]) -> Path:
    """`folder`, or where it is damaged the newest whole checkpoint of `run`, saying so.

    Raises CheckpointError when there is none, or when the damaged one was named itself.
    """
    try:
        verify(folder, only_model=True)
        return folder
    except CheckpointError as error:
        other = None if run is None else newest(run, say)
        if other is None:
            raise
        say(f"{error}; answering from {other.name} instead")
        return other


def checked_folder(folder: Path) -> Path:
    """`folder`, when it holds a model that may be loaded. Raises ModelError."""
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} is no model folder: it has no config.json")
    if not list(folder.glob("*.safetensors")):
        others = sorted(p.name for p in folder.glob("*.bin")) + sorted(
            p.name for p in folder.glob("*.pt*")
        )
        hint = f" ({', '.join(others)} is not read: pickles can run code)" if others else ""
        raise ModelError(f"{folder} has no weights: no *.safetensors file{hint}")
    check_model_folder(folder)
    if "quantization_config" in read_config(folder / "config.json"):
        raise ModelError(
            f"{folder} is quantised already, so its own weights are lost: take the model as it was "
            "published first (adapt.method = qlora quantises it while training)"
        )
    return folder


def load(source: Source, system: str = "") -> Loaded:
    """Load base, adapter and tokenizer, in the format that this machine computes it best in."""
    keep_few_kernels()
    tokenizer_folder = source.adapter or source.folder
    tokenizer = load_tokenizer(tokenizer_folder)
    model = _from_pretrained(source.folder, dtype_of(source.folder))
    if source.adapter is not None:
        _prepare(model, source.adapter)
        load_adapter(model, source.adapter)
    model.eval()
    still(model)
    fuse(model)
    return Loaded(source, model, tokenizer, Renderer(tokenizer, system))


def dtype_of(folder: Path) -> torch.dtype:
    """The number format that a run computes the weights in `folder` in, here."""
    return pick_dtype(count_weights(folder))


def count_weights(folder: Path) -> int:
    """How many numbers the weights in `folder` are. Raises ModelError for a file that lies."""
    headers = map(read_header, sorted(folder.glob("*.safetensors")))
    return sum(prod(claim["shape"]) for header in headers for claim in header.values())


def still(model: torch.nn.Module) -> None:
    """Switch off whatever dropout a family brings (GPT-2, OPT, Phi, BLOOM): a step is a function of
    its rows and weights alone, or no run could be continued bit for bit."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if isinstance(value, float) and ("dropout" in name or name == "layerdrop"):
                setattr(module, name, 0.0)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{folder} has no usable tokenizer: {error}") from None


def _from_pretrained(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    options: dict[str, Any] = {"local_files_only": True, "use_safetensors": True, "dtype": dtype}
    try:
        # transformers chooses SDPA where the family's attention fits it (Gemma 2's caps do not).
        model = AutoModelForCausalLM.from_pretrained(folder, **options)
    except (OSError, KeyError, RuntimeError, ValueError) as error:
        raise ModelError(f"{folder} cannot be loaded: {error}") from None
    if torch.cuda.is_available():
        cast(torch.nn.Module, model).to("cuda")
    return model


def _prepare(model: PreTrainedModel, adapter: Path) -> None:
    """Make the base what an adapter of ours was trained beside: its activation, its bits."""
    about = adapter / BASE_NOTE
    if about.is_file():
        note = read_config(about)
        name, bits = note.get("activation"), note.get("bits")
        if name and name != find_activation(model):
            set_activation(model, name)
        if bits:
            quantise(model, bits, but=output_head(model))


def _adapter_source(name: str, folder: Path, say: Callable[[str], None]) -> Source:
    check_model_folder(folder)
    config = read_config(folder / ADAPTER_CONFIG)
    base = str(config.get("base_model_name_or_path") or "")
    if Path(base).is_dir():
        return Source(name, checked_folder(Path(base)), folder)
    if Path(base).name == FOLDER:
        return Source(name, starter_folder(say), folder)
    if (moved := _moved_base(folder, base)) is not None:
        say(f"the base has moved: found at {moved}")
        return Source(name, checked_folder(moved), folder)
    raise ModelError(f"the base of {name} is not at {base!r} any more: put it back there")


def _moved_base(adapter: Path, base: str) -> Path | None:
    """The base whose digest our own checkpoint remembers, where its path leads nowhere."""
    ours = adapter / "base.json"
    if not (base and ours.is_file()):
        return None
    return find_moved(Path(base).name, str(read_config(ours).get("base_digest")), adapter)


def _hub_folder(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model"]
    try:
        return checked_folder(Path(snapshot_download(name, allow_patterns=patterns)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        first = str(error).strip().splitlines()[0]
        raise ModelError(
            f"no model {name!r}: not a folder here, and the Hub did not give it ({first})"
        ) from None
