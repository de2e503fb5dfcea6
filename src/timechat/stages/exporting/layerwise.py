"""Hearing a model and its export where neither fits: layer by layer, with the same rule.

`export` hears them whole where that fits, which is much faster; `export/layered` fetches and
drops the weights.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import torch
from gguf import GGMLQuantizationType as Kind
from torch import Tensor, nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from timechat.export import gate, noise
from timechat.export.ggufile import Slot, plan_slots
from timechat.export.layered import (
    Fetch,
    Layered,
    build_shell,
    follow_layered,
    hear_layered,
    sources,
)
from timechat.export.readback import open_gguf, open_layered
from timechat.export.tolerance import SAME, tolerance_for
from timechat.export.weights import Weights
from timechat.model.adapt import output_head
from timechat.model.choose import find_activation, set_activation
from timechat.model.load import Source, dtype_of, load_tokenizer
from timechat.model.render import Renderer
from timechat.stages.exporting import hearing
from timechat.stages.exporting.target import LAYERED_TOKENS, Job, activation_of

# A passage reads all files and holds every answer's activations: half the prompts of a whole model.
NUM_PROBES = 8
# Rows of a matrix that get their noise at a time.
NOISE_ROWS = 1024


def listen(job: Job, weights: Weights, path: Path) -> gate.Verdict:
    """The evaluated model, the same with the format's noise, and the export: one after another."""
    renderer = Renderer(load_tokenizer(job.source.adapter or job.source.folder))
    probes = hearing.make_probes(job.rows, renderer, NUM_PROBES, LAYERED_TOKENS)
    evaluated = _evaluated(job.source, weights)
    tick = job.watcher.track(
        f"hearing the evaluated model layer by layer on {len(probes)} prompts", len(probes)
    )
    lines = hear_layered(evaluated, probes, renderer.stop_ids, progress=tick)
    tolerance = SAME
    if job.form != "adapter":
        job.watcher.say("hearing it with the format's noise")
        tolerance = tolerance_for(lines, follow_layered(_rough(job, weights), lines))
    job.watcher.say("hearing the exported one on the same tokens")
    return gate.judge(lines, follow_layered(_exported(job, path), lines), tolerance)


def _evaluated(source: Source, weights: Weights) -> Layered:
    shell = build_shell(AutoConfig.from_pretrained(source.folder))
    name = activation_of(source)
    if name and name != find_activation(shell):
        set_activation(shell, name)
    return Layered(shell, _seen(source, weights, shell))


def _seen(source: Source, weights: Weights, shell: PreTrainedModel) -> Fetch:
    """Each weight as the run saw it."""
    places, bits, dtype = sources(shell, weights), hearing.bits_of(source), dtype_of(source.folder)
    coded = _linear(shell) if bits else frozenset[str]()
    return lambda own: weights.seen(places[own], dtype, bits if own in coded else 0)


def _linear(shell: PreTrainedModel) -> frozenset[str]:
    """The weights that a run holds in codes: those of linear layers, but not the head's."""
    head = output_head(shell)
    return frozenset(
        f"{name}.weight"
        for name, layer in cast(nn.Module, shell).named_modules()
        if isinstance(layer, nn.Linear | Conv1D) and layer is not head
    )


def _rough(job: Job, weights: Weights) -> Layered:
    """The evaluated model, folded, with an error of the format's size on each weight."""
    evaluated = _evaluated(job.source, weights)
    if job.form == "gguf" and find_activation(evaluated.shell) == "gelu":
        set_activation(evaluated.shell, "gelu_pytorch_tanh")  # all that GGUF's readers know
    add_noise, places = _noise(job, weights), sources(evaluated.shell, weights)
    seen = evaluated.fetch

    def fetch(own: str) -> Tensor:
        value, name = seen(own), places[own]
        add_noise(name, value, torch.Generator().manual_seed(zlib.crc32(name.encode())))
        return value

    evaluated.fetch = fetch
    return evaluated


def _noise(job: Job, weights: Weights) -> Callable[[str, Tensor, torch.Generator], None]:
    """What adds to a weight (by its name in the files) an error for every rounding that lies
    between the evaluated model and the export; as `hearing` has it for whole models."""
    config = cast(PretrainedConfig, AutoConfig.from_pretrained(job.source.folder))
    slots: dict[str, Slot] = {}
    if job.form == "gguf":
        plan = plan_slots(weights, config, job.quantisation)
        slots = {slot.source: slot for slot in plan if isinstance(slot.source, str)}
    bits, changed = hearing.bits_of(job.source), frozenset(weights.adapted)
    rounded = weights.dtype == torch.float32 and dtype_of(job.source.folder) != torch.float32

    def steps(name: str, part: Tensor) -> Iterator[Tensor]:
        kind = weights.entries[name].dtype
        if job.form == "merged" and name in changed and kind in noise.FLOATS:
            yield noise.step_of(kind, part)
        if bits and noise.is_coded(name, part.shape):
            yield noise.step_of_codes(part, bits)
        if rounded and part.dim() > 1:
            yield noise.step_of(torch.bfloat16, part)

    def add(name: str, value: Tensor, draw: torch.Generator) -> None:
        slot = slots.get(name)
        if slot is not None and slot.kind != Kind.F32:
            value.add_(noise.error_within(noise.step_of_slot(slot, value, config), draw))
        for part in value.split(NOISE_ROWS):
            for step in list(steps(name, part)):
                part.add_(noise.error_within(step, draw))

    return add


def _exported(job: Job, path: Path) -> Layered:
    """The export as a model, from its files alone."""
    if job.form == "gguf":
        return open_layered(open_gguf(path))
    if job.form == "adapter":
        source = Source("export", job.source.folder, path)
        return _evaluated(source, Weights(source.folder, source.adapter))
    weights = Weights(path)
    shell = build_shell(AutoConfig.from_pretrained(path))
    places = sources(shell, weights)
    return Layered(shell, lambda own: weights.exact(places[own]))
