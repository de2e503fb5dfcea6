"""The gate: what was exported answers like what was evaluated, or there is no export.

A model is *heard* on held-out prompts: the log-probability of every token of the reference answers
and of its own greedy answers, and how far each of those tokens led the next best. What was exported
is then heard on the same tokens, and the two are *judged* within a tolerance.

Engines that cannot be asked for the likelihood of given tokens (OpenVINO, an HTTP server) are
judged by `judge_engine`: they answer greedily, and may leave the reference's answer only where it
was itself all but undecided; where they name log-probabilities, those are compared up to there.
`stages/serving/vet` does that with whatever `serve` loads.

Reading what was written back is for `readback`, how much is allowed for `tolerance`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from timechat.engine.torch import TorchEngine
from timechat.errors import ExportError
from timechat.model.render import Renderer

Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Probe:
    """A held-out prompt and its reference answer (stop token included), as token ids."""

    id: str
    prompt: tuple[int, ...]
    answer: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Line:
    """One answer as one model hears it, token by token.

    `nats` are the log-probabilities of the answer's tokens, `leads` (nats) by how much each is
    preferred to the best other token: below zero the model would have said something else.
    """

    probe: str
    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    greedy: bool
    nats: tuple[float, ...]
    leads: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Said:
    """What an engine answered by itself; `nats` is empty where it names no log-probabilities."""

    ids: Sequence[int]
    nats: Sequence[float] = ()


@dataclass(frozen=True, slots=True)
class Tolerance:
    """What a format may change: `gap`, the mean change (nats) of a token's log-probability, and
    `margin`, how sure (nats) of a word a model may be and still lose it."""

    gap: float
    margin: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """How the exported model answered beside the evaluated one."""

    gap: float
    worst: float
    num_tokens: int
    num_answers: int
    num_same: int
    lost_margin: float
    tolerance: Tolerance

    @property
    def passed(self) -> bool:
        return self.gap <= self.tolerance.gap and self.lost_margin <= self.tolerance.margin

    @property
    def refused(self) -> str:
        """Which half of the gate failed; empty where none did."""
        if not self.gap <= self.tolerance.gap:  # not a number fails too
            return "likelihood"
        return "" if self.passed else "answers"

    @property
    def figure(self) -> str:
        """One line with the figures, for the card and for the six lines."""
        text = (
            f"log-probabilities differ by {self.gap:.4f} nats a token over {self.num_tokens} "
            f"tokens (at most {self.tolerance.gap:.4f}); {self.num_same} of {self.num_answers} "
            "greedy answers are the same"
        )
        if self.num_same < self.num_answers:
            text += (
                f", the others part at a word preferred by {self.lost_margin:.3f} nats at most "
                f"(allowed: {self.tolerance.margin:.3f})"
            )
        return text


def hear(
    model: PreTrainedModel,
    probes: Sequence[Probe],
    stops: frozenset[int],
    max_new_tokens: int = 24,
    progress: Progress = lambda _: None,
) -> list[Line]:
    """The evaluated model's own answers to the probes and its likelihood of the references."""
    prompts = [probe.prompt for probe in probes]
    said = TorchEngine(model).answers(prompts, max_new_tokens, stops)
    lines: list[Line] = []
    for probe, answer in zip(probes, said, strict=True):
        if probe.answer:
            lines.append(_line(model, probe.id, probe.prompt, probe.answer, False))
        lines.append(_line(model, probe.id, probe.prompt, tuple(answer), True))
        progress(1)
    return lines


def follow(
    model: PreTrainedModel,
    lines: Sequence[Line],
    progress: Progress = lambda _: None,
    at_once: bool = False,
) -> list[Line]:
    """The same tokens as another model hears them: one line after the other, or `at_once`, for a
    model whose weights cost more to come by than the lines to read."""
    if at_once:
        return _side_by_side(model, lines)
    heard: list[Line] = []
    for line in lines:
        heard.append(_line(model, line.probe, line.prompt, line.answer, line.greedy))
        progress(1)
    return heard


def judge(evaluated: Sequence[Line], exported: Sequence[Line], tolerance: Tolerance) -> Verdict:
    """Compare two models that heard the same lines."""
    gaps = [gap_of(one, two) for one, two in zip(evaluated, exported, strict=True)]
    total = sum(len(row) for row in gaps)
    greedy = [leads_of(a, b) for a, b in zip(evaluated, exported, strict=True) if a.greedy]
    # Where the evaluated model was itself at a tie, there was no word to lose.
    lost = [[was for was, now in row if now < 0 < was] for row in greedy]
    return Verdict(
        gap=sum(map(sum, gaps)) / max(1, total),
        worst=max((sum(row) / len(row) for row in gaps if row), default=0.0),
        num_tokens=total,
        num_answers=len(greedy),
        num_same=sum(not row for row in lost),
        lost_margin=max((max(row) for row in lost if row), default=0.0),
        tolerance=tolerance,
    )


def judge_engine(
    evaluated: Sequence[Line],
    answer: Callable[[Sequence[int], int], Said],
    tolerance: Tolerance,
    stops: frozenset[int] = frozenset(),
) -> Verdict:
    """Compare an engine that only answers: `answer(prompt_ids, max_new_tokens)` gives its greedy
    token ids, with or without the stop token at their end (name the `stops` if without).

    Log-probabilities are compared as far as both said the same; without them the gap is 0, and
    the answers alone decide.
    """
    gaps: list[list[float]] = []
    same, lost = 0, 0.0
    greedy = [line for line in evaluated if line.greedy and line.answer]
    for line in greedy:
        said = answer(line.prompt, len(line.answer))
        ids, wanted = list(said.ids), line.answer
        if len(ids) == len(wanted) - 1 and wanted[-1] in stops:
            ids.append(wanted[-1])
        at = first_difference(wanted, ids)
        same += at is None
        if at is not None:
            lost = max(lost, line.leads[at])
        shared = min(len(wanted) if at is None else at, len(said.nats))
        gaps.append([abs(line.nats[i] - said.nats[i]) for i in range(shared)])
    tokens = sum(map(len, gaps))
    worst = max((sum(row) / len(row) for row in gaps if row), default=0.0)
    gap = sum(map(sum, gaps)) / max(1, tokens)
    return Verdict(gap, worst, tokens, len(greedy), same, lost, tolerance)


def refuse_unless(verdict: Verdict, what: str) -> None:
    """Raises ExportError naming which half of the gate failed."""
    if verdict.refused:
        raise ExportError(
            f"not exported: the gate refused {what} ({verdict.refused}): {verdict.figure}. "
            "Nothing was left behind."
        )


def first_difference(wanted: Sequence[int], found: Sequence[int]) -> int | None:
    """The first place where two answers part; None where they do not."""
    for i, token in enumerate(wanted):
        if i >= len(found) or found[i] != token:
            return i
    return None


def stops_in_order(renderer: Renderer) -> list[int]:
    """The stop tokens, the one that ends an answer under the template first."""
    eos: Any = renderer.tokenizer.eos_token_id
    ids = sorted(renderer.stop_ids)
    return sorted(ids, key=lambda token: token == eos)


def gap_of(one: Line, two: Line) -> list[float]:
    """How far each token's log-probability lies from the other model's."""
    if one.answer != two.answer:
        raise ValueError("the two models heard different answers")
    return [abs(a - b) for a, b in zip(one.nats, two.nats, strict=True)]


def leads_of(one: Line, two: Line) -> list[tuple[float, float]]:
    """The leads of a greedy answer's tokens in both models; none for a reference answer."""
    return list(zip(one.leads, two.leads, strict=True)) if one.greedy else []


@torch.inference_mode()
def _line(
    model: PreTrainedModel,
    name: str,
    prompt: tuple[int, ...],
    answer: tuple[int, ...],
    greedy: bool,
) -> Line:
    if not answer:
        return Line(name, prompt, answer, greedy, (), ())
    ids = torch.tensor([[*prompt, *answer[:-1]]], device=model.device)
    logits = model(input_ids=ids, use_cache=False, logits_to_keep=len(answer)).logits[0]
    return _heard(name, prompt, answer, greedy, logits[-len(answer) :])


@torch.inference_mode()
def _side_by_side(model: PreTrainedModel, lines: Sequence[Line]) -> list[Line]:
    """All lines in one pass, padding behind them, where no token of theirs can see it."""
    rows = [[*line.prompt, *line.answer[:-1]] for line in lines]
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    for row, place in zip(rows, ids, strict=True):
        place[: len(row)] = torch.tensor(row)
    # The first place that any answer is told from.
    first = min(len(line.prompt) for line in lines) - 1
    logits = model(
        input_ids=ids.to(model.device),
        attention_mask=torch.ones_like(ids).to(model.device),
        use_cache=False,
        logits_to_keep=ids.shape[1] - first,
    ).logits[:, -(ids.shape[1] - first) :]
    return [
        _heard(line.probe, line.prompt, line.answer, line.greedy, found[at : at + len(line.answer)])
        for line, found in zip(lines, logits, strict=True)
        for at in (len(line.prompt) - 1 - first,)
    ]


def _heard(
    name: str, prompt: tuple[int, ...], answer: tuple[int, ...], greedy: bool, logits: Tensor
) -> Line:
    """A line out of the logits (n, V) that its answer's tokens were told from."""
    logits = logits.float()
    targets = torch.tensor(answer, dtype=torch.long, device=logits.device)[:, None]
    nats = logits.log_softmax(-1).gather(1, targets)
    others = logits.scatter(1, targets, -torch.inf)
    leads = logits.gather(1, targets)[:, 0] - others.max(-1).values
    return Line(name, prompt, answer, greedy, tuple(nats[:, 0].tolist()), tuple(leads.tolist()))
