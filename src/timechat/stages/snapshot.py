"""One model asked everything: the task's questions and the general suite, left as JSON lines.

Taken of the base before training and of the best checkpoint after it; `compare` reads two.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from timechat.engine.torch import TorchEngine
from timechat.evals.run import Choosing, Likelihood, likelihoods
from timechat.evals.sample import keep_only
from timechat.evals.scorers import answer_score, scorer_name
from timechat.evals.suite import General, Task
from timechat.model.load import Loaded
from timechat.records import Score
from timechat.stages.remember import Memory, ask_general
from timechat.stages.watch import Watcher
from timechat.store import read_lines, write_lines


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A model's answers and likelihoods, each list in its suite's order."""

    answers: list[str]
    scores: list[Score]
    task: list[Likelihood]
    choices: list[Choosing]
    prose: list[Likelihood]
    general: list[Likelihood]


def take(
    loaded: Loaded,
    task: Task,
    general: General,
    max_new_tokens: int,
    watcher: Watcher,
    name: str,
    memory: Memory | None = None,
) -> Snapshot:
    """Ask `loaded` everything, greedily. `memory` is given where it is exactly what its folder
    holds: what it answered to the general suite before is not asked again."""
    answers, scores = _answer(loaded, task, max_new_tokens, watcher, name)
    total = len(task.examples) + len(general.choices) + len(general.prose) + len(general.answers)
    tick = watcher.track(f"{name}: {len(general.choices)} general questions", total)
    references = likelihoods(loaded.model, task.examples, tick)
    found = memory.ask(general, tick) if memory else ask_general(loaded, general, tick)
    return Snapshot(answers, scores, references, *found)


def answers_only(
    loaded: Loaded, task: Task, max_new_tokens: int, watcher: Watcher, name: str
) -> Snapshot:
    """The answers alone: all that can be compared with an endpoint."""
    return Snapshot(*_answer(loaded, task, max_new_tokens, watcher, name), [], [], [], [])


def _answer(
    loaded: Loaded, task: Task, max_new_tokens: int, watcher: Watcher, name: str
) -> tuple[list[str], list[Score]]:
    engine = TorchEngine(loaded.model)
    tick = watcher.track(f"{name}: answering {len(task.prompts)} questions", len(task.prompts))
    ids = engine.answers(task.prompts, max_new_tokens, loaded.renderer.stop_ids, tick)
    answers = [loaded.renderer.parse(row) for row in ids]
    scores = [
        Score(q.id, q.cluster, answer_score(a, q), scorer_name(q))
        for q, a in zip(task.questions, answers, strict=True)
    ]
    return answers, scores


def write(snapshot: Snapshot, task: Task, folder: Path) -> None:
    """Leave the snapshot as JSON lines that `cat` and `read` can read."""
    rows = [
        {
            "id": question.id,
            "group": question.group,
            "question": [m.to_dict() for m in question.question],
            "reference": question.reference,
            "answer": answer,
            "score": score.value,
            "scorer": score.scorer,
            "nats": found.nats,
            "num_tokens": found.num_tokens,
            "hits": found.hits,
        }
        for question, answer, score, found in zip(
            task.questions, snapshot.answers, snapshot.scores, snapshot.task, strict=True
        )
    ]
    write_lines(folder / "task.jsonl", rows)
    write_lines(folder / "choices.jsonl", map(asdict, snapshot.choices))
    write_lines(folder / "prose.jsonl", map(asdict, snapshot.prose))
    write_lines(folder / "general.jsonl", map(asdict, snapshot.general))


def read(folder: Path, task: Task) -> Snapshot | None:
    """A snapshot of exactly these questions that was written before, or None."""
    names = ("task", "choices", "prose", "general")
    if not all((folder / f"{name}.jsonl").is_file() for name in names):
        return None
    rows: list[dict[str, Any]] = list(read_lines(folder / "task.jsonl"))
    if [row["id"] for row in rows] != [q.id for q in task.questions]:
        return None
    return Snapshot(
        [row["answer"] for row in rows],
        [
            Score(q.id, q.cluster, row["score"], row["scorer"])
            for q, row in zip(task.questions, rows, strict=True)
        ],
        [Likelihood(row["id"], row["nats"], row["num_tokens"], row["hits"]) for row in rows],
        [_choosing(row) for row in read_lines(folder / "choices.jsonl")],
        [Likelihood(**row) for row in read_lines(folder / "prose.jsonl")],
        [Likelihood(**row) for row in read_lines(folder / "general.jsonl")],
    )


def asked_in(found: Snapshot, general: General) -> General | None:
    """The part of `general` that the snapshot was asked; None where it was asked anything else."""
    return keep_only(
        general,
        [row.item for row in found.choices],
        [row.item for row in found.prose],
        [row.item for row in found.general],
    )


def _choosing(row: dict[str, Any]) -> Choosing:
    return Choosing(row["item"], row["cluster"], row["tag"], tuple(row["values"]))
