"""Ask one model the frozen questions: answers, likelihoods, choices.

Scoring an answer is `scorers`' work and comparing two models `compare`'s. Everything here is
greedy and runs without gradients, so that asking twice gives the same.

Axes: B rows, S tokens of a row, A answers of an item.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from timechat.data.pack import Example, pack
from timechat.evals.suite import Choice
from timechat.model.adapt import disabled
from timechat.model.head import Head, divergence, head_of, hidden_states, log_probs

# Tokens of one forward pass: enough to keep the matrix units busy, little enough to stay small.
TOKENS_PER_PASS = 2048

Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Likelihood:
    """How a model finds a row's target tokens: summed nats, their number, and how many it would
    have said itself (greedy, given the true beginning)."""

    item: str
    nats: float
    num_tokens: int
    hits: int

    @property
    def nats_per_token(self) -> float:
        return self.nats / self.num_tokens


@dataclass(frozen=True, slots=True)
class Choosing:
    """The log-probability (nats) of each answer to an item, the right one first."""

    item: str
    cluster: str
    tag: str
    values: tuple[float, ...]

    @property
    def right(self) -> bool:
        return self.values[0] > max(self.values[1:])


@torch.inference_mode()
def likelihoods(
    model: PreTrainedModel, examples: Sequence[Example], progress: Progress = lambda _: None
) -> list[Likelihood]:
    """The likelihood of each example's target tokens, in the examples' order."""
    head = head_of(model)
    found: dict[int, Likelihood] = {}
    for members in _batches([len(e.ids) for e in examples]):
        rows = [examples[i] for i in members]
        batch = pack(rows)
        hidden = hidden_states(model, batch.ids, batch.layout, batch.target_index)
        values, hits = log_probs(hidden, head, batch.targets.to(hidden.device))
        start = 0
        for i, row in zip(members, rows, strict=True):
            part = slice(start, start + row.num_targets)
            start = part.stop
            nats, right = -values[part].double().sum(), hits[part].sum()
            found[i] = Likelihood(row.id, float(nats), row.num_targets, int(right))
        progress(len(members))
    return [found[i] for i in range(len(examples))]


def mean_nats(rows: Sequence[Likelihood]) -> float:
    """Nats per target token over all rows, every token counting alike."""
    return sum(row.nats for row in rows) / sum(row.num_tokens for row in rows)


def accuracy(rows: Sequence[Likelihood]) -> float:
    """The share of target tokens that the model would have said itself."""
    return sum(row.hits for row in rows) / sum(row.num_tokens for row in rows)


@torch.inference_mode()
def mean_divergence(model: PreTrainedModel, examples: Sequence[Example]) -> float:
    """KL(base ‖ adapted) in nats a token on the examples' targets; the adapters are the difference.

    What RL's Razor (arXiv:2509.04259) found to foretell forgetting, on the run's own prompts.
    """
    batch = pack(examples)
    place = (batch.ids, batch.layout, batch.target_index)
    with disabled(model):
        base = hidden_states(model, *place)
    hidden = hidden_states(model, *place)
    weights = torch.ones(len(hidden), device=hidden.device)
    return float(divergence(hidden, head_of(model), base, weights)) / len(hidden)


@torch.inference_mode()
def choose(
    model: PreTrainedModel, choices: Sequence[Choice], progress: Progress = lambda _: None
) -> list[Choosing]:
    """Score every answer of every item; the prompt is read once for all of an item's answers."""
    head = head_of(model)
    lengths = [len(c.prompt) + sum(map(len, c.answers)) for c in choices]
    found: dict[int, Choosing] = {}
    for members in _batches(lengths, tokens=TOKENS_PER_PASS * 2):
        items = [choices[i] for i in members]
        for i, item, values in zip(members, items, _choice_values(model, head, items), strict=True):
            found[i] = Choosing(item.id, item.cluster, item.tag, values)
        progress(len(members))
    return [found[i] for i in range(len(choices))]


def _choice_values(
    model: PreTrainedModel, head: Head, items: Sequence[Choice]
) -> Iterator[tuple[float, ...]]:
    """One row an item: the prompt, then all answers, each seeing the prompt and itself only."""
    longest = max(len(c.prompt) + sum(map(len, c.answers)) for c in items)
    ids = torch.zeros(len(items), longest, dtype=torch.long)
    positions = torch.zeros_like(ids)
    mask = torch.eye(longest, dtype=torch.bool).repeat(len(items), 1, 1)
    places: list[int] = []
    targets: list[int] = []
    for row, item in enumerate(items):
        size = len(item.prompt)
        ids[row, :size] = torch.tensor(item.prompt)
        positions[row, :size] = torch.arange(size)
        mask[row, :size, :size] = torch.ones(size, size, dtype=torch.bool).tril()
        at = size
        for answer in item.answers:
            end = at + len(answer)
            ids[row, at:end] = torch.tensor(answer)
            positions[row, at:end] = torch.arange(size, size + len(answer))
            mask[row, at:end, :size] = True
            mask[row, at:end, at:end] = torch.ones(end - at, end - at, dtype=torch.bool).tril()
            places += [
                row * longest + size - 1,
                *range(row * longest + at, row * longest + end - 1),
            ]
            targets += answer
            at = end
    device = model.device
    trunk = getattr(model, model.base_model_prefix)
    hidden = trunk(
        input_ids=ids.to(device),
        attention_mask=mask[:, None].to(device),
        position_ids=positions.to(device),
        use_cache=False,
    ).last_hidden_state.flatten(0, 1)[torch.tensor(places, device=device)]
    values, _ = log_probs(hidden, head, torch.tensor(targets, device=device))
    at = 0
    for item in items:
        sums: list[float] = []
        for answer in item.answers:
            sums.append(float(values[at : at + len(answer)].double().sum()))
            at += len(answer)
        yield tuple(sums)


def _batches(lengths: Sequence[int], tokens: int = TOKENS_PER_PASS) -> Iterator[list[int]]:
    """Places of rows of similar length, about `tokens` of them at a time."""
    ranked = sorted(range(len(lengths)), key=lambda i: lengths[i])
    members: list[int] = []
    for i in ranked:
        if members and (len(members) + 1) * lengths[i] > tokens:
            yield members
            members = []
        members.append(i)
    if members:
        yield members
