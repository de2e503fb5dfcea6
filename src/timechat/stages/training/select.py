"""Which checkpoint, and how strong: decided on validation rows and on texts that neither the
training nor the report uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from timechat.data.pack import Example
from timechat.evals.questions.run import accuracy, likelihoods, mean_nats
from timechat.evals.questions.suite import answer_examples
from timechat.model.load import Loaded
from timechat.stages.watch import Watcher
from timechat.training.trainer import Trainer

STRENGTHS = (1.0, 0.8, 0.6)
# Drift on general answers up to which what was learned is left at full strength, in nats per token.
DRIFT = 0.15


@dataclass(frozen=True, slots=True)
class Candidate:
    """A checkpoint's validation: loss in nats per token, greedy accuracy per token, its standard
    error, and the loss on a few general answers."""

    step: int
    loss: float
    accuracy: float
    error: float
    general: float = 0.0


def choose_checkpoint(candidates: Sequence[Candidate]) -> Candidate:
    """The latest checkpoint within one standard error of the best accuracy that forgot little.

    Among checkpoints that answer alike, one whose general answers cost `DRIFT` nats a token more
    than another's is beyond the frontier of task and retention, and is not taken.

    Accuracy, because a model that learns facts grows so sure of itself that its validation loss
    rises while its answers still get better; the latest, because its learning rate has come down.
    The rule is that of Breiman et al. (1984) for pruning trees, turned towards more training.
    """
    best = max(candidates, key=lambda c: (c.accuracy, c.step))
    good = [c for c in candidates if c.accuracy >= best.accuracy - best.error]
    least = min(c.general for c in good)
    return max((c for c in good if c.general <= least + DRIFT), key=lambda c: c.step)


def choose_strength(
    trainer: Trainer, loaded: Loaded, validation: Sequence[Example], watcher: Watcher
) -> float:
    """The greatest strength whose drift on general answers is small, or else the one that loses
    the least of both. Leaves the model at that strength."""
    watched = answer_examples(loaded.renderer, "choose")
    with trainer.change.base():
        before = mean_nats(likelihoods(loaded.model, watched))
    best, best_value = 1.0, float("-inf")
    for strength in STRENGTHS:
        trainer.settle(strength)
        drift = mean_nats(likelihoods(loaded.model, watched)) - before
        right = accuracy(likelihoods(loaded.model, validation))
        watcher.say(
            f"strength {strength:g}: validation accuracy {right:.1%}, general answers "
            f"{drift:+.3f} nats a token"
        )
        value = right - max(0.0, drift - DRIFT)
        if value > best_value:
            best, best_value = strength, value
        if drift <= DRIFT:
            break
    trainer.settle(best)
    return best
