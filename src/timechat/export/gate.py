"""The gate: what was exported answers like what was evaluated, or there is no export.

A model is *heard* on held-out prompts: the log-probability of every token of the reference answers
and of its own greedy answers, and the token that it would have said itself at each place. What was
exported is then heard on the same tokens, and the two are *judged* within the format's tolerance.

Engines that cannot be asked for the likelihood of given tokens (OpenVINO, an HTTP server) are
judged by `judge_engine`: they answer greedily, and may leave the reference's answer only where it
was itself all but undecided. The `serve` room calls that for whatever it loads.

Reading what was written back is for `readback`, where the tolerances come from for LAB.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
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

    `nats` are the log-probabilities of the answer's tokens, `choices` the tokens that the model
    would have said itself, `margins` (nats) by how much it prefers those to the next best.
    """

    probe: str
    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    greedy: bool
    nats: tuple[float, ...]
    choices: tuple[int, ...]
    margins: tuple[float, ...]


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
    def figure(self) -> str:
        """One line with the figures, for the card and for the six lines."""
        text = (
            f"log-probabilities differ by {self.gap:.4f} nats a token over {self.num_tokens} "
            f"tokens (at most {self.tolerance.gap:g}); {self.num_same} of {self.num_answers} "
            "greedy answers are the same"
        )
        if self.num_same < self.num_answers:
            text += (
                f", the others part at a word preferred by {self.lost_margin:.3f} nats at most "
                f"(allowed: {self.tolerance.margin:g})"
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
    model: PreTrainedModel, lines: Sequence[Line], progress: Progress = lambda _: None
) -> list[Line]:
    """The same tokens as another model hears them."""
    heard: list[Line] = []
    for line in lines:
        heard.append(_line(model, line.probe, line.prompt, line.answer, line.greedy))
        progress(1)
    return heard


def judge(evaluated: Sequence[Line], exported: Sequence[Line], tolerance: Tolerance) -> Verdict:
    """Compare two models that heard the same lines."""
    gaps = [_gaps(one, two) for one, two in zip(evaluated, exported, strict=True)]
    total = sum(len(row) for row in gaps)
    same, lost = 0, 0.0
    greedy = [(a, b) for a, b in zip(evaluated, exported, strict=True) if a.greedy]
    for one, two in greedy:
        at = first_difference(one.answer, two.choices)
        same += at is None
        if at is not None:
            lost = max(lost, one.margins[at])
    return Verdict(
        gap=sum(map(sum, gaps)) / max(1, total),
        worst=max((sum(row) / len(row) for row in gaps if row), default=0.0),
        num_tokens=total,
        num_answers=len(greedy),
        num_same=same,
        lost_margin=lost,
        tolerance=tolerance,
    )


def judge_engine(
    evaluated: Sequence[Line],
    answer: Callable[[Sequence[int], int], Sequence[int]],
    tolerance: Tolerance,
    stops: frozenset[int] = frozenset(),
) -> Verdict:
    """Compare an engine that only answers: `answer(prompt_ids, max_new_tokens)` gives its greedy
    token ids, with or without the stop token at their end (name the `stops` if without).

    This is what `serve` calls for what it loads into an engine, with the lines that `hear` took
    of the evaluated model. Without likelihoods the gap is 0, and the answers alone decide.
    """
    same, lost = 0, 0.0
    greedy = [line for line in evaluated if line.greedy and line.answer]
    for line in greedy:
        ids = list(answer(line.prompt, len(line.answer)))
        wanted = line.answer
        if len(ids) == len(wanted) - 1 and wanted[-1] in stops:
            ids.append(wanted[-1])
        at = first_difference(wanted, ids)
        same += at is None
        if at is not None:
            lost = max(lost, line.margins[at])
    tokens = sum(len(line.answer) for line in greedy)
    return Verdict(0.0, 0.0, tokens, len(greedy), same, lost, tolerance)


def refuse_unless(verdict: Verdict, what: str) -> None:
    """Raises ExportError naming which half of the gate failed."""
    if verdict.gap > verdict.tolerance.gap or verdict.gap != verdict.gap:
        raise ExportError(
            f"not exported: the gate refused {what} (likelihood): {verdict.figure}. "
            "Nothing was left behind."
        )
    if not verdict.passed:
        raise ExportError(
            f"not exported: the gate refused {what} (answers): {verdict.figure}. "
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


def _gaps(one: Line, two: Line) -> list[float]:
    if one.answer != two.answer:
        raise ValueError("the two models heard different answers")
    return [abs(a - b) for a, b in zip(one.nats, two.nats, strict=True)]


@torch.inference_mode()
def _line(
    model: PreTrainedModel,
    name: str,
    prompt: tuple[int, ...],
    answer: tuple[int, ...],
    greedy: bool,
) -> Line:
    if not answer:
        return Line(name, prompt, answer, greedy, (), (), ())
    ids = torch.tensor([[*prompt, *answer[:-1]]], device=model.device)
    logits = model(input_ids=ids, use_cache=False, logits_to_keep=len(answer)).logits[0].float()
    logits = logits[-len(answer) :]
    best = logits.topk(2, dim=-1)
    targets = torch.tensor(answer, device=logits.device)
    nats = logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]
    return Line(
        name,
        prompt,
        answer,
        greedy,
        tuple(nats.tolist()),
        tuple(best.indices[:, 0].tolist()),
        tuple((best.values[:, 0] - best.values[:, 1]).tolist()),
    )
