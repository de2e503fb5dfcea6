"""The questions of a proof, frozen: rendered once to token ids, the same before and after.

The task's questions come from the run's test rows under its system prompt. The general suite is
shipped, and rendered by the base's own template without that prompt, so that it asks about what
the model could do before.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from timechat.conversation import Conversation, Message, content_hash
from timechat.data.pack import Example, encode
from timechat.model.render import Renderer
from timechat.shipped import shipped


@dataclass(frozen=True, slots=True)
class Choice:
    """A general question as token ids with its possible answers, the right one first."""

    id: str
    cluster: str
    tag: str
    prompt: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class General:
    """What a model could do before: choices, and texts whose likelihood is watched."""

    choices: tuple[Choice, ...]
    prose: tuple[Example, ...]
    answers: tuple[Example, ...]


@dataclass(frozen=True, slots=True)
class Task:
    """The run's own questions: prompts to answer, and rows with the reference for likelihood."""

    questions: tuple[Conversation, ...]
    prompts: tuple[tuple[int, ...], ...]
    examples: tuple[Example, ...]

    @property
    def digest(self) -> str:
        payload = json.dumps([list(p) for p in self.prompts]).encode()
        return hashlib.sha256(payload).hexdigest()


def task_suite(questions: Sequence[Conversation], renderer: Renderer, limit: int) -> Task:
    """At most `limit` of the questions, chosen by content and not by place in the file.

    Only the last answer of a row carries weight: the turns before it are the question.
    """
    chosen = list(questions)
    if len(chosen) > limit:
        chosen = sorted(chosen, key=lambda q: content_hash(q.messages))[:limit]
    last_only = [q.with_messages(_only_last_weighs(q.messages)) for q in chosen]
    return Task(
        tuple(chosen),
        tuple(tuple(renderer.prompt(q.question)) for q in chosen),
        tuple(encode(q, renderer) for q in last_only),
    )


def general_suite(renderer: Renderer, split: str = "measure") -> General:
    """The shipped suite for one tokenizer; `split` chooses the watched texts."""
    return General(
        tuple(_choice(row, renderer) for row in _rows("general/items.jsonl")),
        tuple(prose_examples(renderer, split)),
        tuple(answer_examples(renderer, split)),
    )


def answer_examples(renderer: Renderer, split: str) -> list[Example]:
    """General questions with good answers; answers carry weight."""
    rows = [row for row in _rows("general/answers.jsonl") if row["split"] == split]
    return [encode(Conversation.from_dict(row), renderer) for row in rows]


def prose_examples(renderer: Renderer, split: str) -> list[Example]:
    """Plain paragraphs; every token carries weight."""
    rows = [row for row in _rows("general/prose.jsonl") if row["split"] == split]
    return [_plain(row["id"], row["text"], renderer) for row in rows]


def retention_sample(suite: General, share: float, seed: int = 0) -> tuple[Choice, ...]:
    """A share of the choices, the same for the same seed."""
    rows = list(suite.choices)
    random.Random(seed).shuffle(rows)
    return tuple(rows[: max(1, round(share * len(rows)))])


def _choice(row: dict[str, Any], renderer: Renderer) -> Choice:
    user = Message("user", row["question"])
    prompt = renderer.prompt([user])
    answers: list[tuple[int, ...]] = []
    for text in (row["answer"], *row["wrong"]):
        rendered = renderer.example([user, Message("assistant", text)])
        end = max(i for i, weight in enumerate(rendered.weights) if weight > 0) + 1
        answers.append(tuple(rendered.ids[len(prompt) : end]))
    return Choice(row["id"], row["group"], row["tags"][0], tuple(prompt), tuple(answers))


def _plain(name: str, text: str, renderer: Renderer) -> Example:
    ids = renderer.tokenizer(text, add_special_tokens=False)["input_ids"]
    return Example(tuple(ids), (1.0,) * len(ids), name)


def _only_last_weighs(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    earlier = tuple(Message(m.role, m.content, 0.0) for m in messages[:-1])
    return (*earlier, messages[-1])


def _rows(name: str) -> list[dict[str, Any]]:
    with shipped(name).open(encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]
