"""Ask one model the frozen questions: answers, likelihoods, choices.

Scoring an answer is `scorers`' work and comparing two models `compare`'s. Everything here is
greedy and runs without gradients, so that asking twice gives the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from timechat.data.pack import Example, pack
from timechat.evals.questions.suite import Choice
from timechat.model.adapt import disabled
from timechat.model.head import Head, divergence, head_of, hidden_states, log_probs
from timechat.model.layout import plan_forks
from timechat.model.paths import Path, path_of
from timechat.records import Score

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

    @property
    def score(self) -> Score:
        """1 where the right answer is the likeliest."""
        return Score(self.item, self.cluster, float(self.right), "likeliest-1")


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
    """Score every answer of every item, in the items' order.

    Where the model reads packed rows, what all prompts begin with is read once a pass, each
    question once, and its answers side by side behind it; else every answer behind its question.
    """
    head = head_of(model)
    read = _read_forked if path_of(model) is Path.PACKED else _read_each
    lengths = [len(c.prompt) + sum(map(len, c.answers)) for c in choices]
    found: dict[int, Choosing] = {}
    for members in _batches(lengths, tokens=TOKENS_PER_PASS * 2):
        items = [choices[i] for i in members]
        for i, item, values in zip(members, items, read(model, head, items), strict=True):
            found[i] = Choosing(item.id, item.cluster, item.tag, values)
        progress(len(members))
    return [found[i] for i in range(len(choices))]


def _read_forked(
    model: PreTrainedModel, head: Head, items: Sequence[Choice]
) -> Iterator[tuple[float, ...]]:
    opening = _opening(items)
    flat = list(items[0].prompt[:opening])
    forks: list[list[int]] = []
    places: list[int] = []
    targets: list[int] = []
    for item in items:
        own = item.prompt[opening:]
        fork = len(flat) + len(own) - 1
        flat += own
        for answer in item.answers:
            places += [fork, *range(len(flat), len(flat) + len(answer) - 1)]
            targets += answer
            flat += answer
        forks.append([len(own), *map(len, item.answers)])
    hidden = hidden_states(
        model, torch.tensor([flat]), plan_forks(forks, opening), torch.tensor(places)
    )
    values, _ = log_probs(hidden, head, torch.tensor(targets, device=hidden.device))
    return _sums(values, items)


def _read_each(
    model: PreTrainedModel, head: Head, items: Sequence[Choice]
) -> Iterator[tuple[float, ...]]:
    rows = [
        Example(item.prompt + answer, (0.0,) * len(item.prompt) + (1.0,) * len(answer), item.id)
        for item in items
        for answer in item.answers
    ]
    values: list[Tensor] = []
    for members in _rows_in_order(rows):
        batch = pack(members)
        hidden = hidden_states(model, batch.ids, batch.layout, batch.target_index)
        values.append(log_probs(hidden, head, batch.targets.to(hidden.device))[0])
    return _sums(torch.cat(values), items)


def _rows_in_order(rows: Sequence[Example]) -> Iterator[Sequence[Example]]:
    """At most TOKENS_PER_PASS tokens at a time; items of one pass are of similar length already."""
    each = max(1, TOKENS_PER_PASS // max(len(row.ids) for row in rows))
    for start in range(0, len(rows), each):
        yield rows[start : start + each]


def _opening(items: Sequence[Choice]) -> int:
    """How many tokens all prompts begin with; every prompt keeps one of its own."""
    first, last = min(i.prompt for i in items), max(i.prompt for i in items)
    common = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), None)
    shortest = min(len(i.prompt) for i in items)
    return min(shortest - 1, shortest if common is None else common)


def _sums(values: Tensor, items: Sequence[Choice]) -> Iterator[tuple[float, ...]]:
    """Each item's answers' log-probabilities, out of those of all tokens in order."""
    lengths = [len(answer) for item in items for answer in item.answers]
    sums = iter([float(part.double().sum()) for part in values.cpu().split(lengths)])
    for item in items:
        yield tuple(next(sums) for _ in item.answers)


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
