"""What the gate asks of the evaluated model, and how much it then allows.

Which prompts, in which precision, and with which of a format's roundings as noise. `export` holds
what it wrote against it, `vet` what `serve` loaded into an engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from timechat.conversation import Conversation
from timechat.evals.questions.suite import answer_conversations
from timechat.export import gate, noise
from timechat.export.tolerance import SAME, tolerance_for
from timechat.export.weights import Weights
from timechat.model.choose import find_activation, set_activation
from timechat.model.load import Loaded, Source
from timechat.model.machine import free_memory
from timechat.model.peft import BASE_NOTE
from timechat.model.render import Renderer
from timechat.stages.preparing.prepare import load_prepared, rows_of_run
from timechat.stages.watch import Watcher
from timechat.store.files import read_json

# Prompts that the gate asks, and their tokens in all: enough to see any mistake, little to wait.
NUM_PROBES, PROBE_TOKENS = 16, 3000


@dataclass(frozen=True, slots=True)
class Form:
    """What rounds the weights on the way: `adapter`, `merged` or `gguf` with a quantisation;
    `bits`, where the evaluated base was itself in 8 or 4; `rounded`, where it was held in bf16
    and its files are in fp32."""

    name: str
    quantisation: str = ""
    bits: int = 0
    rounded: bool = False


def held_out_rows(run: Path | None) -> tuple[Conversation, ...]:
    """Held-out conversations: the run's own, else general questions that are shipped."""
    if run is not None:
        prepared = load_prepared(rows_of_run(run))
        if rows := prepared.test or prepared.validation:
            return rows
    return tuple(answer_conversations("measure"))


def make_probes(
    rows: Sequence[Conversation],
    renderer: Renderer,
    most: int = NUM_PROBES,
    most_tokens: int = PROBE_TOKENS,
) -> list[gate.Probe]:
    """At most `most` questions with their reference answers, as token ids."""
    probes: list[gate.Probe] = []
    total = 0
    for row in rows:
        prompt = tuple(renderer.prompt(row.question))
        whole = renderer.example(row.messages)
        last = max((i for i, w in enumerate(whole.weights) if w > 0), default=-1)
        answer = tuple(whole.ids[len(prompt) : last + 1])
        if tuple(whole.ids[: len(prompt)]) != prompt:
            answer = ()
        if probes and total + len(prompt) + len(answer) > most_tokens:
            continue
        probes.append(gate.Probe(row.id, prompt, answer))
        total += len(prompt) + len(answer)
        if len(probes) == most:
            break
    return probes


def hear_evaluated(
    loaded: Loaded, probes: Sequence[gate.Probe], watcher: Watcher
) -> list[gate.Line]:
    tick = watcher.track(f"hearing the evaluated model on {len(probes)} prompts", len(probes))
    return gate.hear(loaded.model, probes, loaded.renderer.stop_ids, progress=tick)


def find_tolerance(
    loaded: Loaded, lines: Sequence[gate.Line], form: Form, weights: Weights, watcher: Watcher
) -> gate.Tolerance:
    """What the format's own noise does to the evaluated model, which is spent by it."""
    if form.name == "adapter":
        return SAME
    noise.fold(loaded.model)
    if form.name == "gguf" and find_activation(loaded.model) == "gelu":
        # GGUF's readers know the tanh form alone, which the file therefore means.
        set_activation(loaded.model, "gelu_pytorch_tanh")
    noise.roughen(loaded.model, _steps(form, weights, loaded.model))
    tick = watcher.track("hearing it with the format's noise", len(lines))
    return tolerance_for(lines, gate.follow(loaded.model, lines, progress=tick))


def _steps(form: Form, weights: Weights, model: PreTrainedModel) -> noise.Steps:
    """Every rounding that lies between the evaluated model and the export."""
    if form.name == "gguf":
        yield from noise.steps_of_gguf(weights, cast(Any, model).config, form.quantisation)
    else:
        yield from noise.steps_of_merge(weights)
    if form.bits:
        yield from noise.steps_of_base(weights, form.bits)
    if form.rounded or model.dtype != torch.float32:
        yield from noise.steps_of_bf16(model)


def widen(loaded: Loaded) -> torch.dtype:
    """Hear in fp32 where that fits: the format's own error then stands alone."""
    needed = 4 * sum(p.numel() for p in loaded.model.parameters())
    if not torch.cuda.is_available() and needed * 1.2 < free_memory():
        cast(nn.Module, loaded.model).to(torch.float32)
    return loaded.model.dtype


def bits_of(source: Source) -> int:
    """In how many bits the base was held while the adapter learned; 0 for whole."""
    if source.adapter is None or not (source.adapter / BASE_NOTE).is_file():
        return 0
    return int(read_json(source.adapter / BASE_NOTE).get("bits") or 0)
