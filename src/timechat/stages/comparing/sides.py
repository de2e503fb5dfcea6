"""One side of a comparison: a model of this machine, or one behind an address, asked everything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from timechat.endpoint import Endpoint, Reply, is_address
from timechat.errors import DataError, RecipeError
from timechat.evals.questions.suite import General, Task
from timechat.model.load import Loaded, load, resolve
from timechat.model.render import Renderer
from timechat.stages.comparing.hosted import Price, ask_endpoint, tell_findings
from timechat.stages.evaluating import snapshot
from timechat.stages.evaluating.cache import AnswerCache
from timechat.stages.evaluating.snapshot import Snapshot
from timechat.stages.watch import Watcher


@dataclass(slots=True)
class Side:
    """One model's answers; the model and its cache where it is here; what got no answer, what it
    cost, and what a reader should know of it."""

    shot: Snapshot
    loaded: Loaded | None = None
    cache: AnswerCache | None = None
    missing: frozenset[str] = frozenset()
    cost: dict[str, Any] = field(default_factory=dict[str, Any])
    findings: list[str] = field(default_factory=list[str])

    def keep(self, task: Task, kept: Task) -> None:
        """Forget the answers to questions of `task` that are not in `kept`."""
        ids = {q.id for q in kept.questions}
        places = [i for i, q in enumerate(task.questions) if q.id in ids]
        self.shot = self.shot.at(places)


@dataclass(frozen=True, slots=True)
class Asker:
    """Asks any model the same questions, rendered by the same `renderer`, into `out`."""

    task: Task
    general: General
    renderer: Renderer
    max_new_tokens: int
    out: Path
    watcher: Watcher
    prices: Mapping[str, Price]
    offline: bool = False

    def ask(self, name: str, label: str) -> Side:
        return self.ask_hosted(name, label) if is_address(name) else self._ask_local(name, label)

    def _ask_local(self, name: str, label: str) -> Side:
        self.watcher.say(f"loading {name}")
        loaded = load(resolve(name, self.watcher.say))
        _same_vocabulary(self.renderer, loaded)
        cache = AnswerCache(loaded, self.watcher)
        about = (self.max_new_tokens, self.watcher, label, cache)
        if self.general.choices:
            shot = snapshot.take(loaded, self.task, self.general, *about)
        else:
            shot = snapshot.answers_only(loaded, self.task, *about)
        return Side(shot, loaded, cache)

    def ask_hosted(self, address: str, label: str) -> Side:
        """A model behind an address. Raises DataError where it answered nothing at all."""
        endpoint = self.open(address, Path("evals") / label / "answers.jsonl")
        try:
            replies, cost = ask_endpoint(
                endpoint, self.task, self.max_new_tokens, self.watcher, self.prices
            )
        finally:
            endpoint.close()
        if cost["unanswered"] == len(replies):
            fault = next(iter(cost["faults"]))
            raise DataError(f"{address} answered none of {len(replies)} questions: {fault}")
        answers = [reply.text for reply in replies]
        wait = cost.get("first_token_ms")
        shot = Snapshot(answers, self.task.score(answers), [], [], [], [], wait)
        cost["seconds_per_answer"] = sum(r.seconds for r in replies) / max(1, len(replies))
        missing = _missing(self.task, replies)
        return Side(shot, None, None, missing, cost, tell_findings(address, cost))

    def open(self, address: str, record: Path) -> Endpoint:
        """The endpoint, its answers recorded under the report's folder."""
        return Endpoint(address, self.out / record, offline=self.offline)


def _missing(task: Task, replies: Sequence[Reply]) -> frozenset[str]:
    return frozenset(q.id for q, r in zip(task.questions, replies, strict=True) if r.fault)


def _same_vocabulary(renderer: Renderer, loaded: Loaded) -> None:
    if renderer.tokenizer.get_vocab() != loaded.tokenizer.get_vocab():
        raise RecipeError(
            f"{loaded.source.name} has another vocabulary than the first model: their likelihoods "
            "cannot be compared token by token"
        )
