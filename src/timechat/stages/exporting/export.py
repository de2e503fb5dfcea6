"""`export`: write a model in a format, read it back, hold it against what was evaluated.

Formats are the `export` room's; this is the order of things, and the rule that nothing is left
behind when any of them fails.
"""

from __future__ import annotations

import gc
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import nn
from transformers import AutoConfig, PretrainedConfig

from timechat.errors import ExportError, nearest
from timechat.export import gate, inspection
from timechat.export.card import Facts, base_name, card_base, use_of, write_card
from timechat.export.ggufile import QUANTISATIONS, plan_slots, write_gguf
from timechat.export.merged import write_merged, write_settings
from timechat.export.ollama import read_chain, write_modelfile
from timechat.export.readback import load_gguf, open_gguf, vocabulary_of
from timechat.export.vocabulary import read_vocabulary
from timechat.export.weights import Weights
from timechat.model.choose import activation_key
from timechat.model.load import Loaded, Source, load, load_tokenizer, resolve
from timechat.model.peft import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from timechat.model.render import Renderer
from timechat.records import Measure
from timechat.stages.exporting import hearing, layerwise
from timechat.stages.exporting.hearing import held_out_rows
from timechat.stages.exporting.measure import Asked
from timechat.stages.exporting.target import (
    CARD,
    GATE,
    MODELFILE,
    Job,
    activation_of,
    beside,
    file_of,
    fits_whole,
    name_of,
    open_target,
    probed,
    refuse_changed_base,
    refuse_no_space,
    refuse_taken,
    report_of,
    run_of,
)  # fmt: skip
from timechat.stages.watch import Watcher
from timechat.store.files import read_json, sha256, write_json, write_text

FORMATS = ("adapter", "merged", "gguf")


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written where, and the gate's figures; the content of `gate.json`."""

    path: str
    format: str
    quantisation: str
    files: tuple[str, ...]
    num_bytes: int
    verdict: gate.Verdict
    figure: str
    stop_tokens: tuple[str, ...]
    notes: tuple[str, ...]
    measures: tuple[Measure, ...] = ()


def export(
    model: str,
    form: str,
    out: Path,
    quantisation: str = "",
    measure: bool = False,
    watcher: Watcher | None = None,
) -> Exported:
    """Write MODEL at `out` as `adapter`, `merged` or `gguf`, if it answers the same from there.

    A GGUF goes into the folder `out`, or to the file `out` when that ends in `.gguf`. Raises
    ExportError, naming what was refused; nothing is left behind then.
    """
    watcher = watcher or Watcher()
    quantisation = _checked(form, quantisation)
    source = resolve(model, watcher.say)
    run = run_of(model, source)
    job = Job(
        source, form, quantisation, run, name_of(model, run, source), held_out_rows(run), watcher
    )
    refuse_taken(job, out)
    refuse_changed_base(source)
    weights = Weights(source.folder, source.adapter)
    with open_target(out, job) as folder:
        return _write(job, weights, folder, out, measure)


def _checked(form: str, quantisation: str) -> str:
    if form not in FORMATS:
        raise ExportError(f"no format {form!r}: {nearest(form, FORMATS)}")
    if form != "gguf":
        if quantisation:
            raise ExportError(f"--quantize is for gguf only; {form} keeps the base's numbers")
        return ""
    quantisation = (quantisation or "q8_0").lower()
    if quantisation not in QUANTISATIONS:
        raise ExportError(
            f"no quantisation {quantisation!r}: {nearest(quantisation, QUANTISATIONS)}"
        )
    return quantisation


def _write(job: Job, weights: Weights, folder: Path, out: Path, measure: bool) -> Exported:
    """Write, inspect, listen, describe: all in `folder`, which becomes `out` when this returns."""
    say = job.watcher.say
    tokenizer = load_tokenizer(job.source.adapter or job.source.folder)
    renderer = Renderer(tokenizer)
    config = cast(PretrainedConfig, AutoConfig.from_pretrained(job.source.folder))
    carry_activation(job.form, job.source, config, weights)
    file = file_of(job, out)
    refuse_no_space(job, weights, config, folder)
    is_whole = fits_whole(job, weights, measure)
    _write_form(job, weights, config, renderer, folder / file)
    say("reading it back and comparing every tensor, the template, the stop tokens and ids")
    _inspect(job, weights, config, renderer, folder / file)
    if is_whole:
        verdict, dtype, measures = _listen(job, weights, folder, folder / file, measure)
    else:
        verdict, dtype, measures = layerwise.listen(job, weights, folder / file), torch.float32, ()
    gate.refuse_unless(verdict, f"the {job.label} export")
    notes = _tell_how(job, dtype, is_whole)
    if job.form == "gguf":
        notes += _write_ollama(renderer, folder, file, _window(config))
    facts = Facts(
        name=job.name,
        form=job.form,
        base=card_base(job.source.folder),
        figures=(f"{verdict.figure}.", *_INSPECTED[job.form]),
        report=report_of(job.run),
        measures=measures,
        use=use_of(job.form, str(out), file.name, base_name(job.source.folder)),
        notes=tuple(f"{note[0].upper()}{note[1:]}." for note in notes),
    )
    write_text(folder / beside(job, out, CARD), write_card(facts))
    files = tuple(sorted([*(p.name for p in folder.iterdir()), beside(job, out, GATE)]))
    total = sum(p.stat().st_size for p in folder.iterdir())
    stops = tuple(renderer.tokenizer.convert_ids_to_tokens(gate.stops_in_order(renderer)))
    done = Exported(
        str(out), job.form, job.quantisation, files, total, verdict, verdict.figure, stops,
        tuple(notes), measures,
    )  # fmt: skip
    write_json(folder / beside(job, out, GATE), done)
    return done


def _tell_how(job: Job, dtype: torch.dtype, is_whole: bool) -> list[str]:
    """In which precision and on what the two models were compared, for the card."""
    how = "" if is_whole else " layer by layer"
    notes = [f"compared{how} in {str(dtype).removeprefix('torch.')}, on {probed(job)}"]
    if bits := hearing.bits_of(job.source):
        notes.append(
            f"the adapter was trained and evaluated beside its base in {bits} bits"
            + ("" if job.form == "adapter" else "; here it is folded into the whole base")
        )
    return notes


_INSPECTED = {
    "adapter": ("The adapter's tensors are the evaluated ones, byte for byte.",),
    "merged": (
        "Every tensor is the base's with the adapter folded in, bit for bit; template, stop "
        "tokens and token ids are the evaluated ones.",
    ),
    "gguf": (
        "Every value is within its type's rounding of the evaluated one; template, stop tokens "
        "and token ids are the evaluated ones.",
    ),
}


def carry_activation(form: str, source: Source, config: PretrainedConfig, weights: Weights) -> None:
    """Put the run's own activation into the settings that are written, or refuse by name."""
    name, key = activation_of(source), activation_key(config)
    if not name or (key is not None and getattr(config, key) == name):
        return
    if form == "adapter":
        raise ExportError(
            f"the run changed the base's activation to {name!r}, which an adapter's files cannot "
            "say, so every other program would answer otherwise: export it merged"
        )
    if key is None or key not in weights.config:
        raise ExportError(
            f"the run changed the base's activation to {name!r}, and the settings of a "
            f"{config.model_type} model have no name for it: it cannot be exported"
        )
    setattr(config, key, name)
    weights.config[key] = name


def _write_form(
    job: Job, weights: Weights, config: PretrainedConfig, renderer: Renderer, path: Path
) -> None:
    stops = gate.stops_in_order(renderer)
    if job.form == "adapter":
        _copy_adapter(job.source, path)
    elif job.form == "merged":
        tick = job.watcher.track(f"merging {len(weights.entries)} tensors", len(weights.entries))
        write_merged(weights, path, progress=tick)
        write_settings(weights, path, renderer.tokenizer, stops)
    else:
        num_rows = int(config.vocab_size)
        vocabulary = read_vocabulary(renderer.tokenizer, stops, num_rows)
        total = len(plan_slots(weights, config, job.quantisation))
        tick = job.watcher.track(f"writing {total} tensors as {job.quantisation}", total)
        write_gguf(path, weights, config, vocabulary, job.quantisation, job.name, tick)


def _inspect(
    job: Job, weights: Weights, config: PretrainedConfig, renderer: Renderer, path: Path
) -> None:
    questions = [row.question for row in job.rows]
    if job.form == "adapter":
        assert job.source.adapter is not None
        if sha256(path / ADAPTER_WEIGHTS) != sha256(job.source.adapter / ADAPTER_WEIGHTS):
            raise ExportError("not exported: the adapter's file changed on its way")
        inspection.check_folder_ids(load_tokenizer(path), renderer, questions)
    elif job.form == "merged":
        inspection.check_settings_of_folder(path, renderer)
        inspection.check_folder_ids(load_tokenizer(path), renderer, questions)
        inspection.check_merged_tensors(weights, path)
    else:
        contents = open_gguf(path)
        inspection.check_vocabulary(vocabulary_of(contents), renderer, questions)
        inspection.check_gguf_tensors(contents, weights, config, job.quantisation)


def _listen(
    job: Job, weights: Weights, folder: Path, path: Path, measure: bool
) -> tuple[gate.Verdict, torch.dtype, tuple[Measure, ...]]:
    """The two models one after the other, so that only one is ever in memory."""
    asked = Asked(job.source, job.run, job.rows, job.watcher) if measure else None
    loaded = load(job.source)
    evaluated_in = loaded.model.dtype
    if asked is not None:
        asked.ask_evaluated(loaded)
    dtype = hearing.widen(loaded)
    probes = hearing.make_probes(job.rows, loaded.renderer)
    lines = hearing.hear_evaluated(loaded, probes, job.watcher)
    rounded = weights.dtype == torch.float32 and evaluated_in != torch.float32
    bits = hearing.bits_of(job.source)
    form = hearing.Form(job.form, job.quantisation, bits, rounded)
    tolerance = hearing.find_tolerance(loaded, lines, form, weights, job.watcher)
    del loaded
    gc.collect()
    exported = _load_back(job, folder, path, dtype)
    tick = job.watcher.track("hearing the exported one on the same tokens", len(lines))
    verdict = gate.judge(lines, gate.follow(exported.model, lines, progress=tick), tolerance)
    if asked is None or not verdict.passed:
        return verdict, dtype, ()
    cast(nn.Module, exported.model).to(evaluated_in)
    return verdict, dtype, asked.compare(exported)


def _load_back(job: Job, folder: Path, path: Path, dtype: torch.dtype) -> Loaded:
    """The export as a model, from its files alone."""
    source = Source("export", path)
    if job.form == "gguf":
        tokenizer = load_tokenizer(job.source.adapter or job.source.folder)
        contents = open_gguf(path)
        return Loaded(source, load_gguf(contents, dtype), tokenizer, Renderer(tokenizer))
    if job.form == "adapter":
        source = Source("export", job.source.folder, path)
    loaded = load(source)
    cast(nn.Module, loaded.model).to(dtype)
    return loaded


def _copy_adapter(source: Source, folder: Path) -> None:
    """The adapter and what it is spoken to with; the training state stays behind."""
    if source.adapter is None:
        raise ExportError(f"{source.name} is a whole model, not an adapter: export it merged")
    for file in sorted(source.adapter.iterdir()):
        if file.is_file() and file.name != "manifest.json":
            shutil.copyfile(file, folder / file.name)
    config = read_json(folder / ADAPTER_CONFIG)
    config["base_model_name_or_path"] = base_name(source.folder)
    write_json(folder / ADAPTER_CONFIG, config)


def _write_ollama(renderer: Renderer, folder: Path, file: Path, window: int) -> list[str]:
    """The Modelfile, or the reason why there is none."""
    bos = str(renderer.tokenizer.bos_token or "")
    vocabulary = vocabulary_of(open_gguf(folder / file))
    chain = read_chain(renderer, bos if vocabulary.add_bos else "")
    if chain is None:
        return [
            "no Modelfile: this chat template is no chain of turns, so Ollama's own template "
            "language cannot say the same; llama.cpp and LM Studio read the template in the file"
        ]
    names = renderer.tokenizer.convert_ids_to_tokens(gate.stops_in_order(renderer))
    write_text(folder / MODELFILE, write_modelfile(chain, file.name, names, window))
    return []


def _window(config: PretrainedConfig) -> int:
    return int(getattr(config, "max_position_embeddings", 0) or 2048)
