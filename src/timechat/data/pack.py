"""Examples to packed batches: many rows in one flat sequence, with what they share computed once.

The cut inside attention is `model.attention`'s; this file decides which rows go together and where
their targets are.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from timechat.conversation import Conversation
from timechat.model.layout import Layout, plan_layout
from timechat.model.render import Renderer

# A shared opening shorter than this saves less than its own attention call costs.
MIN_PREFIX = 8


@dataclass(frozen=True, slots=True)
class Example:
    """One row as token ids with a loss weight per token, and the conversation's id."""

    ids: tuple[int, ...]
    weights: tuple[float, ...]
    id: str

    @property
    def num_targets(self) -> int:
        """Tokens that carry loss; the first token of a row never does: nothing predicts it."""
        return sum(weight > 0 for weight in self.weights[1:])


@dataclass(frozen=True, slots=True)
class Batch:
    """Packed rows.

    `ids` (1, T) flat tokens with the shared prefix first, `target_index` (n,) the flat places
    whose hidden state predicts a target, `targets` (n,) the tokens they predict, `weights` (n,).
    `num_tokens` counts every row's real tokens, the shared prefix once for each row. The last
    targets are those of the rows `held`, which stay as the base has them.
    """

    ids: Tensor
    layout: Layout
    target_index: Tensor
    targets: Tensor
    weights: Tensor
    num_tokens: int
    row_ids: tuple[str, ...]
    held: tuple[Example, ...] = ()
    # Every row of the batch in its order, those that are held last.
    rows: tuple[Example, ...] = ()

    @property
    def num_target_tokens(self) -> int:
        """Targets that are learned from."""
        return len(self.targets) - self.num_held

    @property
    def num_held(self) -> int:
        return sum(example.num_targets for example in self.held)


def encode(conversation: Conversation, renderer: Renderer) -> Example:
    rendered = renderer.example(conversation.messages)
    return Example(tuple(rendered.ids), tuple(rendered.weights), conversation.id)


def pack(
    examples: Sequence[Example], held: Sequence[Example] = (), share_prefix: bool = True
) -> Batch:
    """One batch of all `examples`, and of the rows `held` that stay as the base has them.

    Only the examples share a prefix. Raises ValueError when they have no target.
    """
    prefix = shared_prefix(examples) if share_prefix else 0
    flat = list(examples[0].ids[:prefix])
    lengths: list[int] = []
    places: list[int] = []
    targets: list[int] = []
    weights: list[float] = []
    for number, example in enumerate((*examples, *held)):
        skip = prefix if number < len(examples) else 0
        own = example.ids[skip:]
        for i, weight in enumerate(example.weights[skip:]):
            # The first own token is predicted inside the prefix only if it is no target
            # (`shared_prefix` sees to that); the first token of a row is predicted by nothing.
            if weight > 0 and i > 0:
                places.append(len(flat) + i - 1)
                targets.append(own[i])
                weights.append(weight)
        flat += own
        lengths.append(len(own))
    if not any(example.num_targets for example in examples):
        raise ValueError("a batch without a single target token")
    rows = (*examples, *held)
    return Batch(
        ids=torch.tensor([flat]),
        layout=plan_layout(lengths, prefix, len(held)),
        target_index=torch.tensor(places),
        targets=torch.tensor(targets),
        weights=torch.tensor(weights),
        num_tokens=sum(len(example.ids) for example in rows),
        row_ids=tuple(example.id for example in rows),
        held=tuple(held),
        rows=rows,
    )


def shared_prefix(examples: Sequence[Example]) -> int:
    """How many opening tokens all rows share, short of the first target; 0 when too few."""
    if len(examples) < 2:
        return 0
    first, last = min(e.ids for e in examples), max(e.ids for e in examples)
    common = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), 0)
    # The last prefix token must predict no target, and each row must keep a token of its own.
    limit = min(
        next((i for i, weight in enumerate(e.weights) if weight > 0), len(e.ids)) - 1
        for e in examples
    )
    prefix = min(common, limit)
    return prefix if prefix >= MIN_PREFIX else 0


def order(num_rows: int, batch_rows: int, num_steps: int, seed: int) -> list[list[int]]:
    """Row numbers for each step: epoch after epoch in fresh permutations, none skipped.

    A function of its arguments alone, so a resumed run finds its place by the step's number.
    """
    stream: list[int] = []
    epoch = 0
    while len(stream) < num_steps * batch_rows:
        rows = list(range(num_rows))
        random.Random(f"{seed}-{epoch}").shuffle(rows)
        stream += rows
        epoch += 1
    return [stream[i * batch_rows : (i + 1) * batch_rows] for i in range(num_steps)]
