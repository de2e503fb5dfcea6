"""One model asked everything: the task's questions and the general suite, left as JSON lines.

Taken of the base before training and of the best checkpoint after it; `report` compares two.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from timechat.conversation import Conversation, Message
from timechat.engine.protocol import Sampling
from timechat.engine.torch import TorchEngine
from timechat.evals.questions.run import Choosing, Likelihood, likelihoods
from timechat.evals.questions.sample import keep_only
from timechat.evals.questions.suite import General, Task
from timechat.model.load import Loaded
from timechat.records import Score
from timechat.stages.evaluating.cache import AnswerCache, ask_general
from timechat.stages.watch import Watcher
from timechat.store.files import read_json, read_lines, write_json, write_lines

FILES = ("task", "choices", "prose", "general")
TIMING = "timing.json"
# Questions whose first token is waited for, and the seconds after which no more are.
TIMED, TIMED_S = 8, 20.0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A model's answers and likelihoods, each list in its suite's order; and how long its first
    token takes (the median, one question at a time), where that was measured."""

    answers: list[str]
    scores: list[Score]
    task: list[Likelihood]
    choices: list[Choosing]
    prose: list[Likelihood]
    general: list[Likelihood]
    first_token_ms: float | None = None

    def at(self, places: Sequence[int]) -> Snapshot:
        """The snapshot with the task's questions at these places alone, in this order."""
        return replace(
            self,
            answers=[self.answers[i] for i in places],
            scores=[self.scores[i] for i in places],
            task=[self.task[i] for i in places] if self.task else [],
        )


def take(
    loaded: Loaded,
    task: Task,
    general: General,
    max_new_tokens: int,
    watcher: Watcher,
    name: str,
    cache: AnswerCache | None = None,
) -> Snapshot:
    """Ask `loaded` everything, greedily. `cache` is given where it is exactly what its files
    hold: what it answered before is not asked again."""
    answers, scores = _answer(loaded, task, max_new_tokens, watcher, name, cache)
    total = len(task.examples) + len(general.choices) + len(general.prose) + len(general.answers)
    tick = watcher.track(f"{name}: {len(general.choices)} general questions", total)
    rows = task.examples
    references = cache.rate(rows, tick) if cache else likelihoods(loaded.model, rows, tick)
    found = cache.ask(general, tick) if cache else ask_general(loaded, general, tick)
    return Snapshot(answers, scores, references, *found, wait_for_token(loaded, task.prompts))


def answers_only(
    loaded: Loaded,
    task: Task,
    max_new_tokens: int,
    watcher: Watcher,
    name: str,
    cache: AnswerCache | None = None,
) -> Snapshot:
    """The answers alone: all that can be compared with an endpoint."""
    found = _answer(loaded, task, max_new_tokens, watcher, name, cache)
    return Snapshot(*found, [], [], [], [], wait_for_token(loaded, task.prompts))


def wait_for_token(loaded: Loaded, prompts: Sequence[Sequence[int]]) -> float:
    """Milliseconds from a question to its answer's first token: the median over a few questions
    spread over all, after one that warms the machine up; fewer where they take long."""
    spread = prompts[:: max(1, len(prompts) // TIMED)][:TIMED]
    engine, one = TorchEngine(loaded.model), Sampling(max_new_tokens=1)
    waits: list[float] = []
    begun = time.perf_counter()
    for prompt in (spread[0], *spread):
        started = time.perf_counter()
        list(engine.stream(prompt, one, frozenset()))
        waits.append(1000 * (time.perf_counter() - started))
        if time.perf_counter() - begun > TIMED_S:
            break
    return statistics.median(waits[1:] or waits)


def _answer(
    loaded: Loaded,
    task: Task,
    max_new_tokens: int,
    watcher: Watcher,
    name: str,
    cache: AnswerCache | None,
) -> tuple[list[str], list[Score]]:
    tick = watcher.track(f"{name}: answering {len(task.prompts)} questions", len(task.prompts))
    stop = loaded.renderer.stop_ids
    if cache:
        ids, _ = cache.answer(task.prompts, max_new_tokens, tick)
    else:
        ids = TorchEngine(loaded.model).answers(task.prompts, max_new_tokens, stop, tick)
    answers = [loaded.renderer.parse(row) for row in ids]
    return answers, task.score(answers)


def write(snapshot: Snapshot, task: Task, folder: Path) -> None:
    """Leave the snapshot as JSON lines that `cat` and `read` can read; an endpoint's has answers
    and scores alone."""
    rows: list[dict[str, Any]] = [
        {
            "id": question.id,
            "group": question.group,
            "question": [m.to_dict() for m in question.question],
            "reference": question.reference,
            "answer": answer,
            "score": score.value,
            "scorer": score.scorer,
        }
        for question, answer, score in zip(
            task.questions, snapshot.answers, snapshot.scores, strict=True
        )
    ]
    for row, found in zip(rows, snapshot.task, strict=False):
        row |= reference_fields(found)
    write_lines(folder / "task.jsonl", rows)
    write_lines(folder / "choices.jsonl", map(asdict, snapshot.choices))
    write_lines(folder / "prose.jsonl", map(asdict, snapshot.prose))
    write_lines(folder / "general.jsonl", map(asdict, snapshot.general))
    if snapshot.first_token_ms is not None:
        write_json(folder / TIMING, {"first_token_ms": round(snapshot.first_token_ms, 1)})


def read(folder: Path, task: Task) -> Snapshot | None:
    """A snapshot of exactly these questions that was written before, or None."""
    found = read_answers(folder)
    if found is None or [q.id for q in found[0]] != [q.id for q in task.questions]:
        return None
    return found[1] if found[1].task else None


def read_answers(folder: Path) -> tuple[list[Conversation], Snapshot] | None:
    """The questions and answers that `write` left in `folder`, or None where it left none."""
    if not all((folder / f"{name}.jsonl").is_file() for name in FILES):
        return None
    rows: list[dict[str, Any]] = list(read_lines(folder / "task.jsonl"))
    questions = [_question(row) for row in rows]
    return questions, Snapshot(
        [row["answer"] for row in rows],
        [
            Score(q.id, q.cluster, row["score"], row["scorer"])
            for q, row in zip(questions, rows, strict=True)
        ],
        [read_reference(row) for row in rows if "nats" in row],
        [read_choosing(row) for row in read_lines(folder / "choices.jsonl")],
        [Likelihood(**row) for row in read_lines(folder / "prose.jsonl")],
        [Likelihood(**row) for row in read_lines(folder / "general.jsonl")],
        read_json(folder / TIMING)["first_token_ms"] if (folder / TIMING).is_file() else None,
    )


def _question(row: dict[str, Any]) -> Conversation:
    messages = tuple(Message(m["role"], m["content"]) for m in row["question"])
    asked = (*messages, Message("assistant", row["reference"]))
    return Conversation(row["id"], asked, group=row["group"])


def asked_in(found: Snapshot, general: General) -> General | None:
    """The part of `general` that the snapshot was asked; None where it was asked anything else."""
    return keep_only(
        general,
        [row.item for row in found.choices],
        [row.item for row in found.prose],
        [row.item for row in found.general],
    )


def reference_fields(found: Likelihood) -> dict[str, Any]:
    """What a question's row says of its reference, for `read_reference`."""
    return {"nats": found.nats, "num_tokens": found.num_tokens, "hits": found.hits}


def read_reference(row: dict[str, Any]) -> Likelihood:
    return Likelihood(row["id"], row["nats"], row["num_tokens"], row["hits"])


def read_choosing(row: dict[str, Any]) -> Choosing:
    """A row of `choices.jsonl`."""
    return Choosing(row["item"], row["cluster"], row["tag"], tuple(row["values"]))
