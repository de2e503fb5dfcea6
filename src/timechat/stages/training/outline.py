"""`plan` for a model that is not on this machine: from its shape alone, nothing downloaded.

Tokens cannot be counted without the model's tokenizer, so they are estimated from characters, and
the plan says so; everything else is the arithmetic of every plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch

from timechat.conversation import Conversation
from timechat.model.number_format import pick_dtype
from timechat.model.paths import refuse_recurrent
from timechat.model.shapes import skeleton
from timechat.planning.facts import Rows
from timechat.planning.plan import make_plan
from timechat.recipe import Recipe
from timechat.records import Derived, Plan
from timechat.stages.preparing.prepare import Prepared
from timechat.stages.training.plan import measure_machine, measure_shape

# English text has about four characters a token in vocabularies of 32,000 to 100,000.
CHARACTERS_PER_TOKEN = 4.0
# What a template puts around each message.
TOKENS_PER_MESSAGE = 6


def is_elsewhere(base: str) -> bool:
    """Whether `base` names a model of the Hub and nothing on this machine."""
    here = base == "starter" or Path(base.partition("@")[0]).exists()
    return not here and base.count("/") == 1 and not base.startswith((".", "/", "~", "http"))


def outline(recipe: Recipe, prepared: Prepared, out: Path) -> Plan:
    """The plan of a run whose base is known by its shape alone.

    Raises ModelError for a base whose shape nobody tells, or that cannot be trained.
    """
    model = skeleton(recipe.base)
    dtype = pick_dtype(sum(p.numel() for p in model.parameters()))
    cast(torch.nn.Module, model).to(dtype)
    refuse_recurrent(model.config.get_text_config())
    held_out = [*prepared.validation, *prepared.test]
    plan = make_plan(
        recipe,
        estimate_rows(prepared.train, held_out),
        measure_shape(model, recipe),
        measure_machine(dtype, out),
    )
    rule = f"estimated at {CHARACTERS_PER_TOKEN:g} characters a token: no tokenizer here"
    tokens = Derived(plan["row_tokens"], rule)
    return replace(plan, numbers={**plan.numbers, "row_tokens": tokens})


def estimate_rows(train: Sequence[Conversation], held_out: Sequence[Conversation]) -> Rows:
    """What a plan wants to know of the rows, from their characters."""
    lengths = [sum(_tokens(m.content) for m in row.messages) for row in train]
    targets = sum(
        _tokens(m.content) for row in train for m in row.messages if m.role == "assistant"
    )
    turns = [m.content for row in train for m in row.messages if m.role == "user"]
    references = sorted(_tokens(row.reference) for row in held_out)
    systems = {row.messages[0].content for row in train if row.messages[0].role == "system"}
    shared = _tokens(systems.pop()) if len(systems) == 1 else 0
    return Rows(
        num_train=len(train),
        tokens=sum(lengths),
        shared_tokens=shared,
        target_tokens=targets,
        longest=max(lengths, default=0),
        reference_tokens=references[int(0.95 * (len(references) - 1))] if references else 32,
        question_words=sum(len(turn.split()) for turn in turns) / max(1, len(turns)),
    )


def _tokens(text: str) -> int:
    return round(len(text) / CHARACTERS_PER_TOKEN) + TOKENS_PER_MESSAGE
