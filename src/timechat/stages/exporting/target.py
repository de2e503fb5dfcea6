"""One export: what, as what, whereto; and what is refused before anything is written.

Writing it and holding it against what was evaluated is `export`'s.
"""

from __future__ import annotations

import math
import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from transformers import PretrainedConfig

from timechat.conversation import Conversation
from timechat.errors import ExportError
from timechat.export.ggufile import plan_slots
from timechat.export.weights import Weights
from timechat.model.load import Source, count_weights, digest_folder
from timechat.model.machine import free_disk, free_memory
from timechat.model.number_format import pick_dtype
from timechat.model.peft import ADAPTER_WEIGHTS, BASE_NOTE
from timechat.stages.watch import Watcher
from timechat.store.files import read_json
from timechat.store.folders import build_folder

# Tokens of the prompts that are heard layer by layer: all of them go through at once.
LAYERED_TOKENS = 1000
CARD, GATE, MODELFILE = "README.md", "gate.json", "Modelfile"


@dataclass(frozen=True, slots=True)
class Job:
    """One export: what, as what, whereto."""

    source: Source
    form: str
    quantisation: str
    run: Path | None
    name: str
    rows: tuple[Conversation, ...]
    watcher: Watcher

    @property
    def label(self) -> str:
        return self.quantisation if self.form == "gguf" else self.form


def refuse_taken(job: Job, out: Path) -> None:
    paths = [out]
    if out.suffix == ".gguf":
        paths += [out.parent / beside(job, out, name) for name in (MODELFILE, CARD, GATE)]
    for path in paths:
        if path.is_file() or (path.is_dir() and any(path.iterdir())):
            raise ExportError(f"{path} exists: name another --out, or remove it first")


def refuse_changed_base(source: Source) -> None:
    """An adapter on a base that was edited since is another model than the evaluated one."""
    if source.adapter is None or not (source.adapter / BASE_NOTE).is_file():
        return
    known = str(read_json(source.adapter / BASE_NOTE).get("base_digest", ""))
    if len(known) == 64 and known != digest_folder(source.folder):
        raise ExportError(
            f"the base in {source.folder} is not the one that {source.name} was trained on (its "
            "digest differs): put the old one back"
        )


def activation_of(source: Source) -> str:
    """The activation that the model was evaluated with, where its adapter remembers one."""
    if source.adapter is None or not (source.adapter / BASE_NOTE).is_file():
        return ""
    return str(read_json(source.adapter / BASE_NOTE).get("activation") or "")


def refuse_no_space(job: Job, weights: Weights, config: PretrainedConfig, folder: Path) -> None:
    needed = weights.num_bytes
    if job.form == "gguf":
        needed = sum(slot.num_bytes for slot in plan_slots(weights, config, job.quantisation))
    if job.form != "adapter" and needed * 1.02 + 2**24 > free_disk(folder):
        raise ExportError(
            f"the export takes {needed / 1e9:.1f} GB and {folder.parent} has "
            f"{free_disk(folder) / 1e9:.1f} GB left: free some space or name another --out"
        )


def whole_bytes(weights: Weights) -> int:
    """What the gate takes where it hears a model whole: the evaluated one or the export."""
    num_weights = count_weights(weights.folder)
    return num_weights * pick_dtype(num_weights).itemsize


def layered_bytes(job: Job, weights: Weights) -> int:
    """What it takes layer by layer: the largest matrix in fp32, with what is added to it, the
    adapter, and the activations of every answer."""
    shapes = [entry.shape for entry in weights.entries.values()]
    largest = max(map(math.prod, shapes))
    # The widest activation: not the vocabulary, whose logits come in chunks.
    widest = max(max(shape) for shape in shapes if math.prod(shape) < largest or len(shapes) == 1)
    adapter = _adapter_bytes(job.source)
    copies = 4 if job.form == "gguf" else 2
    return copies * 4 * largest + 3 * 4 * widest * 2 * LAYERED_TOKENS + adapter


def _adapter_bytes(source: Source) -> int:
    return (source.adapter / ADAPTER_WEIGHTS).stat().st_size if source.adapter else 0


def fits_whole(job: Job, weights: Weights, measure: bool) -> bool:
    """Whether the gate can hear whole models; else it goes layer by layer.

    Raises ExportError where not even that fits: nothing is exported unheard.
    """
    free = free_memory()
    if whole_bytes(weights) <= free:
        return True
    if measure:
        raise ExportError(
            f"--measure asks the whole model, which takes {whole_bytes(weights) / 1e9:.1f} GB of "
            f"memory, and {free / 1e9:.1f} GB are free: leave it out"
        )
    needed = layered_bytes(job, weights)
    if needed > free:
        raise ExportError(
            f"the gate hears the evaluated model and the export layer by layer, which takes "
            f"{needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free. Nothing is "
            "exported unheard: free some memory, or export where there is more"
        )
    return False


@contextmanager
def open_target(out: Path, job: Job) -> Generator[Path]:
    """A folder to fill that becomes `out`; for a single file, whose files move to its folder."""
    if out.suffix != ".gguf" or job.form != "gguf":
        with build_folder(out) as beside:
            yield beside
        return
    inner = out.parent / f".{out.name}.parts"
    with build_folder(inner) as beside:
        yield beside
    for file in sorted(inner.iterdir(), key=lambda p: p.suffix == ".gguf"):
        os.replace(file, out.parent / file.name)
    inner.rmdir()


def file_of(job: Job, out: Path) -> Path:
    """Where in the folder the model goes: a name for GGUF, the folder itself for the others."""
    if job.form != "gguf":
        return Path()
    return Path(out.name if out.suffix == ".gguf" else f"{job.name}-{job.quantisation}.gguf")


def beside(job: Job, out: Path, name: str) -> str:
    """Beside a file of the user's naming, ours carry its name; a Modelfile must be called so."""
    if job.form != "gguf" or out.suffix != ".gguf" or name == MODELFILE:
        return name
    return f"{out.stem}.{'md' if name == CARD else name}"


def run_of(model: str, source: Source) -> Path | None:
    """The run behind a MODEL name, where there is one."""
    places = [Path(model.partition("@")[0])]
    if source.adapter is not None:
        places += list(source.adapter.parents)[:2]
    places += list(source.folder.parents)[:2]
    return next((place for place in places if (place / "recipe.yaml").is_file()), None)


def probed(job: Job) -> str:
    return "the run's held-out questions" if job.run is not None else "shipped general questions"


def name_of(model: str, run: Path | None, source: Source) -> str:
    """A name for the card and the file: the run's, or the folder's."""
    named = run.resolve().name if run is not None else Path(model).name
    return named or source.folder.name


def report_of(run: Path | None) -> dict[str, Any] | None:
    if run is None or not (run / "report.json").is_file():
        return None
    return cast(dict[str, Any], read_json(run / "report.json"))
