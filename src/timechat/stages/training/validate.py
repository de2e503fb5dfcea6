"""Validation during training: loss and accuracy on held-out rows, and the watched questions."""

from __future__ import annotations

import math
from typing import Any

from timechat.engine.torch import TorchEngine
from timechat.evals.questions.run import (
    Likelihood,
    accuracy,
    likelihoods,
    mean_divergence,
    mean_nats,
)
from timechat.evals.questions.suite import answer_examples
from timechat.model.adapt import adapters
from timechat.model.load import Loaded
from timechat.stages.training.context import Context
from timechat.stages.training.select import Candidate
from timechat.store.files import append_line
from timechat.training.trainer import Trainer

# Held-out questions that are answered at every validation, so that one watches the model learn.
WATCHED = 3
# How many general answers and rows of the run are looked at beside, so that looking stays cheap.
LOOKED_AT = 8


def validate(context: Context, trainer: Trainer, served: Loaded) -> Candidate:
    """Validation loss and accuracy, and the watched questions answered, both by the average."""
    trainer.model.eval()
    with trainer.averaged():
        line, samples, candidate = _ask(context, trainer.step, served)
    trainer.model.train()
    append_line(context.out / "metrics.jsonl", line)
    for sample in samples:
        append_line(context.out / "samples.jsonl", sample)
    context.watcher.validated({**line, "samples": samples})
    return candidate


def _ask(
    context: Context, step: int, served: Loaded
) -> tuple[dict[str, Any], list[dict[str, Any]], Candidate]:
    """The line for the log, the watched answers, and the candidate, of the model as it is."""
    # Several ranks end it together: each is waited for in every layer.
    check = context.stop.check if context.ranks.count == 1 else lambda: None
    found = likelihoods(context.loaded.model, context.validation, lambda _: check())
    loss, right = mean_nats(found), accuracy(found)
    spread = slice(None, None, max(1, len(context.task.questions) // WATCHED))
    prompts = context.task.prompts[spread][:WATCHED]
    questions = context.task.questions[spread][:WATCHED]
    engine = TorchEngine(context.loaded.model)
    ids = engine.answers(prompts, min(48, context.plan["max_new_tokens"]), served.renderer.stop_ids)
    samples = [
        {
            "step": step,
            "question": question.question[-1].content,
            "answer": served.renderer.parse(answer),
            "reference": question.reference,
        }
        for question, answer in zip(questions, ids, strict=True)
    ]
    line = {
        "step": step,
        "validation_loss": round(loss, 6),
        "validation_accuracy": round(right, 6),
    }
    if len(found) > 1:
        line["validation_loss_error"] = round(_loss_error(found), 6)
    kept = _look_at_retention(context)
    line |= kept
    tokens = sum(row.num_tokens for row in found)
    error = math.sqrt(max(right * (1 - right), 1e-9) / tokens)
    line["validation_accuracy_error"] = round(error, 6)
    return line, samples, Candidate(step, loss, right, error, kept["general_nats"])


def _look_at_retention(context: Context) -> dict[str, float]:
    """What the model was, on a few texts: loss on general answers, divergence from the base."""
    model = context.loaded.model
    general = answer_examples(context.loaded.renderer, "choose")[:LOOKED_AT]
    out = {"general_nats": round(mean_nats(likelihoods(model, general)), 6)}
    rows = [row for row in context.validation[:LOOKED_AT] if row.num_targets]
    # Without adapters the base is gone, and there is nothing to measure against.
    if rows and adapters(model):
        out["divergence"] = round(mean_divergence(model, rows), 6)
    return out


def _loss_error(found: list[Likelihood]) -> float:
    """The standard error of the loss over rows."""
    values = [row.nats_per_token for row in found]
    mean = sum(values) / len(values)
    return math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values))


def has_collapsed(candidates: list[Candidate], patience: int) -> bool:
    """Whether accuracy has been clearly below its best for `patience` validations in a row."""
    best = max(candidates, key=lambda c: c.accuracy)
    recent = candidates[-patience:]
    return len(recent) == patience and all(
        c.step > best.step and c.accuracy < best.accuracy - 3 * best.error for c in recent
    )
