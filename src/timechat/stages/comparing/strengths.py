"""How strongly to apply what was learned: each strength from the base (0) to beyond it (1.25).

Which one to take is chosen on validation rows and on general texts that the report does not use;
what each gives is then told on the test questions. An adapter is scaled; where a model's own
weights learned, they are taken that far from the base's.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch

from timechat.data.pack import Example
from timechat.evals.questions.run import accuracy, mean_nats
from timechat.evals.questions.suite import General, Task, answer_examples
from timechat.evals.statistics.compare import compare
from timechat.model.adapt import adapters
from timechat.model.load import Loaded
from timechat.records import Measure
from timechat.stages.evaluating import snapshot
from timechat.stages.evaluating.cache import AnswerCache
from timechat.stages.training.select import DRIFT
from timechat.stages.watch import Watcher

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25)


@dataclass(frozen=True, slots=True)
class Setting:
    """One strength: what validation says of it, and what the test questions do.

    `accuracy` and its standard `error` are of validation tokens; `drift` is of general answers, in
    nats a token above the base's.
    """

    strength: float
    accuracy: float
    error: float
    drift: float
    task: Measure
    retention: Measure

    @property
    def worth(self) -> float:
        """Accuracy, less what forgetting beyond `DRIFT` costs."""
        return self.accuracy - max(0.0, self.drift - DRIFT)


def choose_setting(settings: Sequence[Setting]) -> float:
    """The strength nearest to 1 among those whose worth is within a standard error of the best."""
    best = max(settings, key=lambda s: s.worth)
    near = [s for s in settings if s.worth >= best.worth - best.error]
    return min(near, key=lambda s: (abs(s.strength - 1), s.strength)).strength


def slide(
    base: Loaded,
    tuned: Loaded,
    validation: Sequence[Example],
    task: Task,
    general: General,
    max_new_tokens: int,
    margin: float,
    watcher: Watcher,
    used: float = 1.0,
) -> list[Setting]:
    """Every strength asked everything; the first, 0, is what the others are compared with.

    `used` is the share of what was learned that `tuned` holds already.
    """
    watched = answer_examples(tuned.renderer, "choose")
    out: list[Setting] = []
    start: tuple[snapshot.Snapshot, float] | None = None
    for strength in STRENGTHS:
        share = strength / used
        with at_strength(base, tuned, share):
            cache = AnswerCache(tuned, watcher, share)
            label = f"strength {strength:g}"
            tick = watcher.track(f"{label}: validation", len(validation) + len(watched))
            right = cache.rate(validation, tick)
            nats = mean_nats(cache.rate(watched, tick))
            shot = snapshot.take(tuned, task, general, max_new_tokens, watcher, label, cache)
        start = start or (shot, nats)
        tokens = sum(row.num_tokens for row in right)
        hits = accuracy(right)
        error = (max(hits * (1 - hits), 1e-9) / tokens) ** 0.5
        first = start[0]
        gain = compare("answer score", first.scores, shot.scores, kind="gain", unit="share")
        kept = compare(
            "general ability",
            [choice.score for choice in first.choices],
            [choice.score for choice in shot.choices],
            kind="retention",
            margin=margin,
            unit="share",
        )
        out.append(Setting(strength, hits, error, nats - start[1], gain, kept))
    return out


@contextmanager
def at_strength(base: Loaded, tuned: Loaded, strength: float) -> Generator[None]:
    """`tuned` at that strength of what was learned, while the block runs."""
    layers = list(adapters(tuned.model).values())
    if layers:
        alphas = [layer.alpha for layer in layers]
        for layer in layers:
            layer.alpha *= strength
        try:
            yield
        finally:
            for layer, alpha in zip(layers, alphas, strict=True):
                layer.alpha = alpha
        return
    originals = dict(base.model.named_parameters())
    learned = {
        name: p.detach().clone()
        for name, p in tuned.model.named_parameters()
        if not torch.equal(p, originals[name])
    }
    try:
        _lerp(tuned, originals, learned, strength)
        yield
    finally:
        _lerp(tuned, originals, learned, 1.0)


def tell_slider(settings: Sequence[Setting], used: float) -> tuple[dict[str, Any], str]:
    """For the report's details, and a sentence for its findings."""
    chosen = choose_setting(settings)
    at = next(s for s in settings if s.strength == chosen)
    low, high = at.retention.ci95
    finding = (
        f"strength {chosen:g} is best on validation; on the test questions it answers "
        f"{at.task.after:.1%}, general ability {100 * at.retention.difference:+.1f} points "
        f"[{100 * low:+.1f}, {100 * high:+.1f}] ({at.retention.verdict})"
    )
    return {"chosen": chosen, "used": used, "settings": [asdict(s) for s in settings]}, finding


def _lerp(
    tuned: Loaded, originals: dict[str, Any], learned: dict[str, torch.Tensor], strength: float
) -> None:
    places = dict(tuned.model.named_parameters())
    with torch.no_grad():
        for name, new in learned.items():
            old = originals[name].detach().float()
            places[name].copy_(new if strength == 1 else old.lerp(new.float(), strength))
