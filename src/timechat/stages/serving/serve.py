"""`serve`: model names to responders that answer."""

from __future__ import annotations

import hashlib
import importlib.util
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoConfig, PreTrainedTokenizerFast

from timechat.endpoint import is_address, key_in_environment, parse_address
from timechat.engine.families import Bits, gguf_file, refusal
from timechat.engine.grammar import GrammarTrial
from timechat.engine.hosted import HostedResponder
from timechat.engine.local import LocalResponder
from timechat.engine.process import ProcessEngine
from timechat.engine.protocol import Engine
from timechat.engine.responder import Grammar, Responder
from timechat.engine.sandbox import SandboxScribe
from timechat.engine.trial import SchemaTrial
from timechat.errors import ModelError
from timechat.model.load import Source, digest_folder, load_tokenizer, resolve
from timechat.model.render import Renderer
from timechat.model.starter import cache_folder
from timechat.stages.exporting.target import GATE
from timechat.stages.serving.cast import cast_in_child, unreadable
from timechat.stages.serving.vet import Subject, VettedEngine
from timechat.store.files import read_json

# A model under a name of its own: scripts for other services name theirs.
OWN_NAME = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)=(.+)")
EngineName = Literal["auto", "llama", "openvino", "torch"]
# In this order `auto` tries them: OpenVINO's first word comes in half of llama.cpp's time, and its
# words a tenth slower (bench/RESULTS.md, chat latency). The last one reads every model.
ENGINES = ("openvino", "llama", "torch")
# What each needs, and how it is had.
_NEEDS = {
    "llama": {"llama_cpp": "llama-cpp-python"},
    "openvino": {name: name for name in ("openvino_genai", "openvino_tokenizers")},
}


@dataclass(frozen=True, slots=True)
class Opened:
    """A model that was found: the name it is served under, its files, its version, and what is to
    answer for it. `shares_base`: other models on the same base are served beside it."""

    name: str
    source: Source
    digest: str
    engine: EngineName = "auto"
    bits: Bits = 8
    shares_base: bool = False

    @property
    def is_hosted(self) -> bool:
        """Whether something elsewhere answers, at an address."""
        return is_address(self.source.name)

    @property
    def run(self) -> Path | None:
        """The run's folder, where the model is a run or a checkpoint of one."""
        folder = Path(self.source.name.partition("@")[0])
        return folder.resolve() if (folder / "recipe.yaml").is_file() else None


def find_models(
    names: Sequence[str],
    say: Callable[[str], None],
    engine: EngineName = "auto",
    bits: Bits = 8,
) -> list[Opened]:
    """The files behind each MODEL. Raises ModelError for one that is missing or named twice."""
    found: list[Opened] = []
    for given in names:
        own, name = split_name(given)
        source = Source(name, Path()) if is_address(name) else resolve(name, say)
        label = own or served_name(name)
        if any(one.name == label for one in found):
            raise ModelError(f"two models would be served as {label!r}: serve them apart")
        # What answers elsewhere can change there at any time: it has no digest.
        digest = "" if is_address(name) else _digest(source)
        found.append(Opened(label, source, digest, engine, bits))
    bases = Counter(one.source.folder for one in found if not one.is_hosted)
    return [replace(one, shares_base=bases[one.source.folder] > 1) for one in found]


def split_name(model: str) -> tuple[str, str]:
    """The name of its own that `NAME=MODEL` gives a model, else none, and the MODEL."""
    found = OWN_NAME.fullmatch(model)
    return (found[1], found[2]) if found and not Path(model).exists() else ("", model)


def served_name(model: str) -> str:
    """A run or folder is served under its folder's name, `RUN@step-N` with the step, and what
    answers elsewhere under the name it has there."""
    if is_address(model):
        return parse_address(model)[1]
    path, at, step = model.rstrip("/").partition("@")
    folder = Path(path)
    label = folder.resolve().name if folder.is_dir() else path
    return f"{label}{at}{step}"


def open_model(found: Opened) -> Responder:
    """A responder around an engine in a process of its own, or around an endpoint elsewhere;
    `start` loads the weights.

    `auto` is llama.cpp where it is installed, can read the model and passes the gate, else OpenVINO
    under the same conditions, else torch, with the reasons in the capabilities. Raises ModelError
    where a named engine cannot serve the model.
    """
    source = found.source
    if found.is_hosted:
        return HostedResponder(*parse_address(source.name), key_in_environment())
    spec: dict[str, Any] = {
        "name": found.name,
        "folder": str(source.folder),
        "adapter": str(source.adapter) if source.adapter is not None else None,
        "digest": found.digest,
        "bits": found.bits,
        "cache": str(cache_folder()),
        # Folded, an adapter would make a copy of every weight: beside others each stays what it is,
        # and all read the base's own file through the same pages of memory.
        "fold": not found.shares_base,
    }
    folder = source.adapter or source.folder
    tokenizer = load_tokenizer(folder)
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ModelError(f"{found.name} has no tokenizer.json; its words cannot be streamed")
    refuse_broken_stops(found.name, source, tokenizer)
    scribe = SandboxScribe(folder)
    engine = choose_engine(found, spec, ENGINES if found.engine == "auto" else (found.engine,))
    grammar = ChosenTrial(engine, {"openvino": SchemaTrial(spec), "llama": GrammarTrial()})
    return LocalResponder(engine, scribe, tokenizer.backend_tokenizer, grammar=grammar)


class ChosenTrial:
    """The trial of schemas that belongs to the engine which was chosen when it started."""

    def __init__(self, engine: Engine, trials: Mapping[str, Grammar]) -> None:
        self._engine, self._trials = engine, trials

    async def check(self, schema: str) -> None:
        if (trial := self._trials.get(self._engine.capabilities.engine)) is not None:
            await trial.check(schema)

    async def stop(self) -> None:
        for trial in self._trials.values():
            await trial.stop()


def choose_engine(
    found: Opened, spec: dict[str, Any], kinds: Sequence[str], note: str = ""
) -> Engine:
    """The first of `kinds` that can serve the model, behind the gate; where that refuses it, the
    next. `note` says which were passed over. Raises ModelError where none can."""
    kind, *others = kinds
    if kind == "torch":
        return ProcessEngine({**spec, "kind": kind, "note": note})
    if reason := why_not(kind, found.source):
        if not others:
            raise ModelError(f"{found.name} cannot be served by {kind}: {reason}")
        passed = "; ".join(part for part in (note, f"not on {kind}: {reason}") if part)
        return choose_engine(found, spec, others, passed)
    source, cache = found.source, Path(spec["cache"])
    subject = Subject(
        source.folder, source.adapter, found.run, found.digest, found.bits, cache, kind
    )
    file = str(gguf_file(found.digest, found.bits, cache))
    instead = partial(choose_engine, found, spec, others) if others else None
    build = cast_in_child if kind == "llama" else None
    return VettedEngine(
        {**spec, "kind": kind, "file": file, "note": note}, instead, subject, build=build
    )


def refuse_broken_stops(name: str, source: Source, tokenizer: PreTrainedTokenizerFast) -> None:
    """Raises ModelError where answers would not end as they did: at a token that the model cannot
    say, or at another one than the folder's gate heard."""
    stops = sorted(Renderer(tokenizer).stop_ids)
    config: Any = AutoConfig.from_pretrained(source.folder, local_files_only=True)
    num_rows = int(config.get_text_config().vocab_size)
    if (beyond := stops[-1]) >= num_rows:
        raise ModelError(
            f"{name} would never stop: its stop token {tokenizer.convert_ids_to_tokens(beyond)!r} "
            f"is number {beyond}, and the model has {num_rows} tokens. The tokenizer's files are "
            "not the model's"
        )
    folder = source.adapter or source.folder
    if (folder / GATE).is_file():
        heard = set(read_json(folder / GATE).get("stop_tokens", ()))
        named = set(map(str, tokenizer.convert_ids_to_tokens(stops)))
        if heard and heard != named:
            raise ModelError(
                f"{name} is not as it was exported: its stop tokens are {sorted(named)}, and the "
                f"gate heard it end at {sorted(heard)}. Export it again"
            )


def why_not(kind: str, source: Source) -> str:
    """The reason why an engine does not serve this model; empty where it can."""
    for module, package in _NEEDS[kind].items():
        if importlib.util.find_spec(module) is None:
            return f"{package} is not installed"
    if torch.cuda.is_available():
        return "this machine has a GPU"
    if kind == "llama":
        return unreadable(source)
    return refusal(AutoConfig.from_pretrained(source.folder, local_files_only=True))


def open_tuned(name: str, folder: Path) -> tuple[Opened, Responder]:
    """A run's best checkpoint, or a checkpoint, under a name of its own. Raises ModelError."""
    source = resolve(str(folder))
    opened = Opened(name, source, _digest(source), shares_base=True)
    return opened, open_model(opened)


def _digest(source: Source) -> str:
    base = digest_folder(source.folder)
    if source.adapter is None:
        return base
    return hashlib.sha256(f"{base}{digest_folder(source.adapter)}".encode()).hexdigest()
