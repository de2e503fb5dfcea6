"""The questions of a proof, frozen: rendered once to token ids, the same before and after.

The task's questions come from the run's test rows under its system prompt. The general suite is
shipped, and rendered by the base's own template without that prompt, so that it asks about what
the model could do before.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from timechat.conversation import Conversation, Message, content_hash
from timechat.data.pack import Example, encode
from timechat.evals.scoring.scorers import answer_score, scorer_name
from timechat.model.render import Renderer
from timechat.records import Score
from timechat.shipped import shipped

# The words that lead to an answer of the general suite.
LEAD = "The answer is:"
# The tag of the user's own questions.
OWN = "own"
# Written by hand, written later, and made by bench/proof_items.py.
ITEMS = ("general/items.jsonl", "general/more.jsonl", "general/generated.jsonl")


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
        """Of everything that a score depends on beside the answer: prompts, references, groups."""
        asked = [
            [list(prompt), q.reference, list(q.answers), q.cluster]
            for q, prompt in zip(self.questions, self.prompts, strict=True)
        ]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()

    def score(self, answers: Sequence[str]) -> list[Score]:
        """Each question's answer by the question's own scorer."""
        return [
            Score(q.id, q.cluster, answer_score(answer, q), scorer_name(q))
            for q, answer in zip(self.questions, answers, strict=True)
        ]

    def only(self, kept: Collection[str]) -> Task:
        """The questions with these ids, in the same order."""
        places = [i for i, q in enumerate(self.questions) if q.id in kept]
        return Task(
            tuple(self.questions[i] for i in places),
            tuple(self.prompts[i] for i in places),
            tuple(self.examples[i] for i in places),
        )


@dataclass(frozen=True, slots=True)
class Decoding:
    """How answers are taken from a model. `template` is the text that lays messages out as tokens,
    empty where an endpoint has its own."""

    max_new_tokens: int
    template: str
    temperature: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """For a report: the settings, and one digest of them."""
        template = hashlib.sha256(self.template.encode()).hexdigest() if self.template else ""
        settings = {
            "max_new_tokens": self.max_new_tokens,
            "temperature": self.temperature,
            "template_sha256": template,
        }
        digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()
        return {**settings, "sha256": digest}


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


def general_suite(
    renderer: Renderer, split: str = "measure", own: Sequence[Choice] = ()
) -> General:
    """The shipped suite for one tokenizer, and the user's own questions; `split` chooses the
    watched texts."""
    return General(
        (*choices(renderer, "measure"), *own),
        tuple(prose_examples(renderer, split)),
        tuple(answer_examples(renderer, split)),
    )


def choices(renderer: Renderer, split: str) -> list[Choice]:
    """General questions with one right and three wrong answers.

    `measure` is for the report alone, `choose` is watched while training and decides nothing
    that `measure` then judges.
    """
    rows = [row for name in ITEMS for row in _rows(name)]
    return [make_choice(row, renderer) for row in rows if row.get("split", "measure") == split]


def answer_examples(renderer: Renderer, split: str) -> list[Example]:
    """General questions with good answers; answers carry weight."""
    return [encode(row, renderer) for row in answer_conversations(split)]


def answer_conversations(split: str) -> list[Conversation]:
    """General questions with good answers, not rendered yet."""
    rows = [row for row in _rows("general/answers.jsonl") if row["split"] == split]
    return [Conversation.from_dict(row) for row in rows]


def prose_examples(renderer: Renderer, split: str) -> list[Example]:
    """Plain paragraphs; every token carries weight."""
    rows = [row for row in _rows("general/prose.jsonl") if row["split"] == split]
    return [_plain(row["id"], row["text"], renderer) for row in rows]


def make_choice(row: dict[str, Any], renderer: Renderer) -> Choice:
    """The question as the user's turn; each answer ends the sentence that `LEAD` begins.

    A bare "Paris" is not how a chat model speaks, and the starter finds only 41 % of the right
    answers that way; inside a sentence it finds 64 % (LAB.md). The full stop ends every answer,
    so that "1" is not likelier than "10" for being its beginning. Tokens that all four answers
    begin with belong to the prompt: that changes no comparison, and is right for every tokenizer.
    """
    prompt = renderer.prompt([Message("user", row["question"])])
    texts = (f"{LEAD} {_sentence(text)}" for text in (row["answer"], *row["wrong"]))
    tails = [_tokens(text, renderer) for text in texts]
    shared = 0
    while len({tail[shared] for tail in tails}) == 1 and shared + 1 < min(map(len, tails)):
        shared += 1
    return Choice(
        row["id"],
        row["group"],
        row["tags"][0],
        (*prompt, *tails[0][:shared]),
        tuple(tuple(tail[shared:]) for tail in tails),
    )


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _tokens(text: str, renderer: Renderer) -> list[int]:
    return list(renderer.tokenizer(text, add_special_tokens=False)["input_ids"])


def _plain(name: str, text: str, renderer: Renderer) -> Example:
    ids = _tokens(text, renderer)
    return Example(tuple(ids), (1.0,) * len(ids), name)


def _only_last_weighs(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    earlier = tuple(Message(m.role, m.content, 0.0) for m in messages[:-1])
    return (*earlier, messages[-1])


def _rows(name: str) -> list[dict[str, Any]]:
    with shipped(name).open(encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]
