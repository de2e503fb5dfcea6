"""The arms of a proof: is training worth it, or would a prompt, examples or documents do?

Every arm answers the same frozen questions as the base and the tuned model, paired with both.
Nothing here is trained. Retrieval's index and the arithmetic of chance live below; the order of
things and the plain sentence at the end are here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from timechat.conversation import Conversation, Message
from timechat.engine.torch import window_of
from timechat.errors import RecipeError, nearest
from timechat.evals.figures import write_change, write_interval, write_level
from timechat.evals.questions.suite import Task
from timechat.evals.statistics.compare import compare
from timechat.model.load import Loaded
from timechat.records import Measure, Score
from timechat.retrieve.index import Bm25
from timechat.stages.comparing.documents import By, DocumentIndex
from timechat.stages.evaluating.cache import AnswerCache
from timechat.stages.evaluating.snapshot import wait_for_token
from timechat.stages.watch import Watcher

RETRIEVAL: dict[str, By] = {
    "retrieval": "both",
    "bm25": "words",
    "dense": "meaning",
    "tuned-retrieval": "both",
}
"""The arms that look things up, and by what."""
STRENGTHS = "strengths"
"""Not one arm but the tuned model at every strength: `strengths` asks it."""
ARMS = ("prompt", "few-shot", *RETRIEVAL, STRENGTHS)
UNTRAINED = ("prompt", "few-shot", "retrieval", "bm25", "dense")
SHOTS = 4
ENOUGH = 0.05
"""How far below the tuned model an arm may lie, in answer score, and still be called enough."""
PROMPT = (
    "Answer the user's question correctly and briefly. If the answer is a name, a number or a "
    "label, give exactly that and nothing else. Do not repeat the question. If you are not sure, "
    "give your best answer in one short sentence."
)
READ = "Use these excerpts to answer. Where they hold the answer, use their own words.\n\n"

Ask = Callable[[Conversation], list[Message]]
"""How an arm puts a question: the messages that the model gets."""


@dataclass(frozen=True, slots=True)
class Arm:
    """One arm's answers, paired with the base's and the tuned model's."""

    name: str
    against_base: Measure
    against_tuned: Measure
    enough: bool
    seconds_per_answer: float
    cost: dict[str, Any]
    answers: tuple[str, ...]


def parse_arms(text: str, documents: Path | None) -> tuple[str, ...]:
    """The arms that a comma-separated list names. Raises RecipeError for others."""
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    for name in names:
        if name not in ARMS:
            raise RecipeError(f"no arm {name!r}: {nearest(name, ARMS)}")
        if name in RETRIEVAL and documents is None:
            raise RecipeError(f"the arm {name!r} needs --documents DIR to look things up in")
    return tuple(dict.fromkeys(names))


def few_shot(question: Conversation, rows: Sequence[Conversation], k: int = SHOTS) -> list[Message]:
    """The question with the `k` training rows nearest to it in words before it.

    Rows of the question's own group are left out: they would hand it the answer of a held-out fact.
    """
    others = [row for row in rows if not row.group or row.group != question.group]
    turns = [row.question[-1].content for row in others]
    nearest_rows = Bm25(turns).search(question.question[-1].content, k) if turns else []
    system = [m for m in question.question if m.role == "system"]
    shown = [
        message
        for i in reversed(nearest_rows)
        for message in (Message("user", turns[i]), Message("assistant", others[i].reference))
    ]
    return [*system, *shown, *(m for m in question.question if m.role != "system")]


def with_prompt(question: Conversation) -> list[Message]:
    return _under(question, PROMPT)


def _under(question: Conversation, text: str) -> list[Message]:
    """The question with `text` after its system prompt."""
    system = "\n\n".join(m.content for m in question.question if m.role == "system")
    rest = [m for m in question.question if m.role != "system"]
    return [Message("system", f"{system}\n\n{text}" if system else text), *rest]


def with_excerpts(index: DocumentIndex, by: By) -> Ask:
    """A way to ask with what the index has on the question before it."""

    def ask(question: Conversation) -> list[Message]:
        found = index.look_up(question.question[-1].content, by)
        return _under(question, READ + "\n\n".join(chunk.text for chunk in found))

    return ask


def answer_arm(
    name: str,
    loaded: Loaded,
    cache: AnswerCache,
    task: Task,
    ask: Ask,
    max_new_tokens: int,
    watcher: Watcher,
) -> tuple[list[str], float, dict[str, Any]]:
    """One arm's answers to the task's questions, the seconds that one took, and the wait for its
    first token: what an arm puts before each question has to be read first."""
    room = window_of(loaded.model) - max_new_tokens
    prompts = [_fitted(loaded, ask(question), room, name) for question in task.questions]
    tick = watcher.track(f"{name}: answering {len(prompts)} questions", len(prompts))
    ids, seconds = cache.answer(prompts, max_new_tokens, tick)
    answers = [loaded.renderer.parse(row) for row in ids]
    wait = {"first_token_ms": round(wait_for_token(loaded, prompts), 1)}
    return answers, seconds / max(1, len(prompts)), wait


def _fitted(loaded: Loaded, messages: list[Message], room: int, name: str) -> list[int]:
    ids = loaded.renderer.prompt(messages)
    if len(ids) > room:
        raise RecipeError(
            f"the arm {name!r} needs {len(ids)} tokens for a question and the model's window "
            f"leaves {room}: compare without it, or bring shorter documents and examples"
        )
    return ids


def weigh_arm(
    name: str,
    task: Task,
    answers: Sequence[str],
    base: Sequence[Score],
    tuned: Sequence[Score],
    seconds: float,
    cost: dict[str, Any] | None = None,
    missing: frozenset[str] = frozenset(),
) -> Arm:
    """Pair an arm with base and tuned over the questions that it answered."""
    scores = [score for score in task.score(answers) if score.item not in missing]
    kept = {score.item for score in scores}
    old = [score for score in base if score.item in kept]
    new = [score for score in tuned if score.item in kept]
    against_base = compare(f"{name} against base", old, scores, kind="gain", unit="share")
    against_tuned = compare(f"{name} against tuned", new, scores, kind="gain", unit="share")
    return Arm(
        name,
        against_base,
        against_tuned,
        against_base.verdict == "improved" and against_tuned.ci95[0] > -ENOUGH,
        seconds,
        cost or {},
        tuple(answers),
    )


def tell_enough(arms: Sequence[Arm], tuned: Measure) -> list[str]:
    """What the arms mean, in plain sentences; the first one answers whether training was needed."""
    lines: list[str] = []
    enough = [a for a in arms if a.enough and a.name in UNTRAINED]
    if enough:
        best = max(enough, key=lambda arm: arm.against_base.after)
        level = write_level(best.against_base.after, best.against_base)
        lines.append(
            f"{best.name} alone is enough here: {level} without any training, against "
            f"{write_level(tuned.after, tuned)} of the tuned model "
            f"({write_change(best.against_tuned)} {write_interval(best.against_tuned)})"
        )
    elif arms and tuned.verdict == "improved":
        lines.append("no arm without training does as well as the tuned model on these questions")
    elif arms:
        lines.append("neither training nor any other arm is shown to be enough on these questions")
    return lines


def is_enough_untrained(arms: Sequence[Arm]) -> bool:
    return any(arm.enough and arm.name in UNTRAINED for arm in arms)


def leave_answers(arm: Arm, task: Task) -> list[dict[str, Any]]:
    return [
        {"id": q.id, "group": q.group, "answer": answer, "reference": q.reference}
        for q, answer in zip(task.questions, arm.answers, strict=True)
    ]


def without_answers(arm: Arm) -> Arm:
    """For the report: the answers stand in `evals/arms`."""
    return replace(arm, answers=())
