"""Validation during training: loss and accuracy on held-out rows, and the watched questions."""

from __future__ import annotations

import math
from typing import Any

from timechat.engine.torch import TorchEngine
from timechat.evals.run import accuracy, likelihoods, mean_nats
from timechat.model.load import Loaded
from timechat.stages.room import Room
from timechat.stages.select import Candidate
from timechat.store import append_line
from timechat.training.loop import Trainer

# Held-out questions that are answered at every validation, so that one watches the model learn.
WATCHED = 3


def validate(room: Room, trainer: Trainer, served: Loaded) -> Candidate:
    """Validation loss and accuracy, and the watched questions answered, both by the average."""
    trainer.model.eval()
    with trainer.averaged():
        line, samples, candidate = _ask(room, trainer.step, served)
    trainer.model.train()
    append_line(room.out / "metrics.jsonl", line)
    for sample in samples:
        append_line(room.out / "samples.jsonl", sample)
    room.watcher.validated({**line, "samples": samples})
    return candidate


def _ask(
    room: Room, step: int, served: Loaded
) -> tuple[dict[str, Any], list[dict[str, Any]], Candidate]:
    """The line for the log, the watched answers, and the candidate, of the model as it is."""
    found = likelihoods(room.loaded.model, room.validation, lambda _: room.stop.check())
    loss, right = mean_nats(found), accuracy(found)
    spread = slice(None, None, max(1, len(room.task.questions) // WATCHED))
    prompts = room.task.prompts[spread][:WATCHED]
    questions = room.task.questions[spread][:WATCHED]
    engine = TorchEngine(room.loaded.model)
    ids = engine.answers(prompts, min(48, room.plan["max_new_tokens"]), served.renderer.stop_ids)
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
    tokens = sum(row.num_tokens for row in found)
    error = math.sqrt(max(right * (1 - right), 1e-9) / tokens)
    return line, samples, Candidate(step, loss, right, error)


def has_collapsed(candidates: list[Candidate], patience: int) -> bool:
    """Whether accuracy has been clearly below its best for `patience` validations in a row."""
    best = max(candidates, key=lambda c: c.accuracy)
    recent = candidates[-patience:]
    return len(recent) == patience and all(
        c.step > best.step and c.accuracy < best.accuracy - 3 * best.error for c in recent
    )
