"""`serve`: model names to responders that answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from timechat.engine.process import ProcessEngine
from timechat.engine.responder import LocalResponder, Responder
from timechat.engine.scribe import ThreadScribe
from timechat.errors import ModelError
from timechat.model.load import Source, digest_folder, load_tokenizer, resolve
from timechat.model.render import Renderer


@dataclass(frozen=True, slots=True)
class Opened:
    """A model that was found: the name it is served under, its files, its version."""

    name: str
    source: Source
    digest: str

    @property
    def run(self) -> Path | None:
        """The run's folder, where the model is a run or a checkpoint of one."""
        folder = Path(self.source.name.partition("@")[0])
        return folder.resolve() if (folder / "recipe.yaml").is_file() else None


def find_models(names: Sequence[str], say: Callable[[str], None]) -> list[Opened]:
    """The files behind each MODEL. Raises ModelError for one that is missing or named twice."""
    found: list[Opened] = []
    for name in names:
        source = resolve(name, say)
        label = served_name(name)
        if any(one.name == label for one in found):
            raise ModelError(f"two models would be served as {label!r}: serve them apart")
        found.append(Opened(label, source, _digest(source)))
    return found


def served_name(model: str) -> str:
    """A run or folder is served under its folder's name, `RUN@step-N` with the step."""
    path, at, step = model.rstrip("/").partition("@")
    folder = Path(path)
    label = folder.resolve().name if folder.is_dir() else path
    return f"{label}{at}{step}"


def open_model(found: Opened) -> Responder:
    """A responder around an engine in a process of its own; `start` loads the weights."""
    source = found.source
    spec = {
        "kind": "torch",
        "name": found.name,
        "folder": str(source.folder),
        "adapter": str(source.adapter) if source.adapter is not None else None,
    }
    tokenizer = load_tokenizer(source.adapter or source.folder)
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ModelError(f"{found.name} has no tokenizer.json; its words cannot be streamed")
    scribe = ThreadScribe(Renderer(tokenizer))
    return LocalResponder(ProcessEngine(spec), scribe, tokenizer.backend_tokenizer)


def _digest(source: Source) -> str:
    base = digest_folder(source.folder)
    return digest_folder(source.adapter) if source.adapter is not None else base
