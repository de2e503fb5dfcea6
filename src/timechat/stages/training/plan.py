"""`plan`: measure the rows, the model and the machine, and work out what a run will cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from transformers import PreTrainedModel

from timechat.conversation import Conversation
from timechat.data.pack import Example, shared_prefix
from timechat.model import machine
from timechat.model.choose import find_activation
from timechat.model.load import Loaded
from timechat.model.method import count_learning
from timechat.model.number_format import pick_dtype
from timechat.model.paths import path_of, row_limit
from timechat.model.quantise import is_product
from timechat.planning.facts import Machine, Rows, Shape
from timechat.planning.plan import make_plan
from timechat.recipe import Qlora, Recipe
from timechat.records import Plan


def plan_run(
    recipe: Recipe,
    loaded: Loaded,
    rows: Sequence[Conversation],
    train: Sequence[Example],
    held_out: tuple[Sequence[Conversation], Sequence[Conversation]],
    out: Path,
) -> Plan:
    """The plan for training `loaded` on `rows`, encoded as `train`, on this machine."""
    found = measure_rows(loaded, rows, train, *held_out)
    shape = measure_shape(loaded.model, recipe)
    return make_plan(recipe, found, shape, measure_machine(dtype_of(loaded.model, recipe), out))


def measure_rows(
    loaded: Loaded,
    rows: Sequence[Conversation],
    train: Sequence[Example],
    validation: Sequence[Conversation],
    test: Sequence[Conversation],
) -> Rows:
    tokens = sum(len(example.ids) for example in train)
    references = sorted(
        len(loaded.tokenizer(row.reference)["input_ids"]) for row in [*validation, *test][:500]
    )
    turns = [m.content for row in rows for m in row.messages if m.role == "user"]
    usual = references[int(0.95 * (len(references) - 1))] if references else 32
    return Rows(
        num_train=len(train),
        tokens=tokens,
        shared_tokens=shared_prefix(train),
        target_tokens=sum(example.num_targets for example in train),
        longest=max((len(example.ids) for example in train), default=0),
        reference_tokens=usual,
        question_words=sum(len(turn.split()) for turn in turns) / max(1, len(turns)),
    )


def measure_shape(model: PreTrainedModel, recipe: Recipe) -> Shape:
    """The numbers of `model`; one without weights will do, but for the way it reads rows."""
    config = model.config.get_text_config()
    parameters = sum(p.numel() for p in model.parameters())
    trained, lowest = count_learning(model, recipe.adapt)
    hidden = int(config.hidden_size)
    embedding = cast(torch.nn.Embedding, model.get_input_embeddings()).weight.numel()
    head = 0 if config.tie_word_embeddings else embedding
    trunk = parameters - embedding - head
    intermediate = int(getattr(config, "intermediate_size", 0) or 4 * hidden)
    window = int(getattr(config, "max_position_embeddings", 0) or 2048)
    path = None if model.device.type == "meta" else path_of(model)
    return Shape(
        parameters=parameters,
        trained=trained,
        lowest=lowest,
        trunk=trunk,
        layers=int(config.num_hidden_layers),
        hidden=hidden,
        intermediate=intermediate,
        vocabulary=int(config.vocab_size),
        window=min(window, row_limit(config) or window),
        weight_bytes=sum(p.numel() * p.element_size() for p in model.parameters()),
        number_bytes=dtype_of(model, recipe).itemsize,
        activation=find_activation(model) or "",
        reading=None if path is None else (path.name.lower(), path.value),
    )


def dtype_of(model: PreTrainedModel, recipe: Recipe) -> torch.dtype:
    """What the run computes in: `model`'s format, or what is best beside a base in codes."""
    if not isinstance(recipe.adapt, Qlora):
        return model.dtype
    coded = sum(m.weight.numel() for m in model.modules() if is_product(m))
    return pick_dtype(sum(p.numel() for p in model.parameters()) - coded)


def measure_machine(dtype: torch.dtype, out: Path) -> Machine:
    return Machine(
        name=machine.machine_name(),
        memory_bytes=machine.free_memory() + machine.peak_memory(),
        disk_bytes=machine.free_disk(out.absolute()),
        matrix_flops=machine.matrix_rate(dtype),
    )
