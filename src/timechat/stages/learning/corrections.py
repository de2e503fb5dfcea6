"""The accepted corrections of a run's queue: what is learned from them, and what checks it.

A correction is a question as it was asked, other wordings that its author gave, and the answer that
stands. Of the other wordings every third one, beginning with the first, only checks and is never
trained; as wordings are added, none changes sides. Where the author gave none, rules make both
kinds (`data.reword`), and the result says how many of its questions are of that weaker sort.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from timechat.conversation import Conversation, Message
from timechat.data.reword import for_checking, for_training
from timechat.errors import LedgerError
from timechat.evals.scoring.rectify import puts_right
from timechat.evals.scoring.scorers import contains, normalize, token_f1
from timechat.ledger.annotation import Queue
from timechat.ledger.judging import Item, Judgement
from timechat.stages.annotating.annotate import reopen
from timechat.stages.annotating.collect import settle

# Of so many other wordings one only checks.
CHECKING = 3
# How alike two texts are (F1 over words) that say the same of the same thing.
ALIKE = 0.6
# The same of two questions, which are shorter.
SAME_QUESTION = 0.5


@dataclass(frozen=True, slots=True)
class Correction:
    """One thing that people put right. `wrong` is what the model had said.

    `trained` and `checked` are whole prompts; `made` says how many of `checked` a rule made. A
    question of signs alone has none to check.
    """

    id: str
    answer: str
    wrong: str
    fact: str
    trained: tuple[tuple[Message, ...], ...]
    checked: tuple[tuple[Message, ...], ...]
    made: int

    @property
    def question(self) -> str:
        return self.trained[0][-1].content

    def score(self, answer: str) -> float:
        """1 when an answer of the model says what was put right, else 0."""
        return puts_right(answer, self.answer, self.wrong, self.question, self.fact)

    def contradicts(self, row: Conversation) -> bool:
        """Whether `row` asks nearly the same, and teaches or expects what this took back."""
        return token_f1(row.question[-1].content, self.question) >= SAME_QUESTION and (
            self.takes_back(row)
        )

    def takes_back(self, row: Conversation) -> bool:
        """Whether the answer of `row` stood in the wrong answer, and stands no more."""
        if row.answers:
            said_wrong, said_right = (contains(t, row.answers) for t in (self.wrong, self.answer))
            return bool(said_wrong) and not said_right
        near_wrong = token_f1(row.reference, self.wrong)
        return near_wrong >= ALIKE and near_wrong > token_f1(row.reference, self.answer)


@dataclass(frozen=True, slots=True)
class Gathered:
    """Every correction that stands, and how many items of the queue are none, by reason."""

    corrections: tuple[Correction, ...]
    left_out: dict[str, int]

    @property
    def digest(self) -> str:
        """Tells what is to be learned from everything else that could be."""
        return hashlib.sha256(repr(self.corrections).encode()).hexdigest()


def find_corrections(run: Path) -> Gathered:
    """The corrections in the queue of `run`. Raises LedgerError when there is none."""
    gathered = gather(reopen(run))
    if not gathered.corrections:
        why = ", ".join(f"{n} {reason}" for reason, n in gathered.left_out.items())
        raise LedgerError(
            f"no correction to learn from in {run} ({why or 'its queue is empty'}): correct an "
            f"answer on the chat page of `timechat serve {run}`, or with `timechat annotate {run}`"
        )
    return gathered


def gather(queue: Queue) -> Gathered:
    """The corrections on which those who judged agree."""
    said = queue.by_item()
    alike: dict[tuple[str, str], list[Item]] = {}
    left: Counter[str] = Counter()
    for item in queue.items():
        judgements = said.get(item.id, [])
        settled = settle(item, judgements)
        if settled.verdict == "corrected" and not settled.reason:
            alike.setdefault((item.cluster, settled.text), []).append(item)
        else:
            left[settled.reason or "not_corrected"] += 1
    corrections = (_correction(items, answer, said) for (_, answer), items in alike.items())
    return Gathered(tuple(corrections), dict(left))


def drop_contradicted(
    rows: Sequence[Conversation], corrections: Sequence[Correction]
) -> tuple[list[Conversation], list[str]]:
    """The rows that neither ask what a correction asks nor teach what one took back, and the ids
    of those that do. Rows of one group say the same fact: what is taken back of one is of all."""
    asked = {tuple(normalize(p[-1].content)) for c in corrections for p in (*c.trained, *c.checked)}
    gone: set[tuple[str, str]] = set()
    for row in rows:
        if row.group and not row.is_text:
            gone |= {(c.id, row.group) for c in corrections if c.contradicts(row)}
    kept: list[Conversation] = []
    dropped: list[str] = []
    for row in rows:
        is_asked = not row.is_text and (
            tuple(normalize(row.question[-1].content)) in asked
            or any(
                c.contradicts(row) or ((c.id, row.group) in gone and c.takes_back(row))
                for c in corrections
            )
        )
        if is_asked:
            dropped.append(row.id)
        else:
            kept.append(row)
    return kept, dropped


def _correction(
    items: Sequence[Item], answer: str, said: Mapping[int, Sequence[Judgement]]
) -> Correction:
    """Out of the items that were put right alike: the first is the question as it was asked."""
    first, *rest = (item.prompt for item in items)
    others = _unlike(first, rest)
    wrong = next((a.text for item in items for a in item.answers), "")
    fact = next((j.note for item in items for j in said.get(item.id, []) if j.note), "")
    checked = others[::CHECKING]
    trained = [first, *(other for i, other in enumerate(others) if i % CHECKING)]
    made = 0
    if not checked:
        known = {prompt[-1].content for prompt in trained}
        found = for_checking(first[-1].content)
        checked = [_ask(first, words) for words in found if words not in known]
        made = len(checked)
    for prompt in list(trained):
        trained += [_ask(prompt, words) for words in for_training(prompt[-1].content)]
    name = hashlib.sha256(repr((first, answer)).encode()).hexdigest()[:16]
    return Correction(name, answer, wrong, fact, tuple(trained), tuple(checked), made)


def _unlike(
    first: tuple[Message, ...], rest: Sequence[tuple[Message, ...]]
) -> list[tuple[Message, ...]]:
    """The wordings that are other words than the question's and one another's."""
    seen = {tuple(normalize(first[-1].content))}
    kept: list[tuple[Message, ...]] = []
    for prompt in rest:
        words = tuple(normalize(prompt[-1].content))
        if words not in seen:
            seen.add(words)
            kept.append(prompt)
    return kept


def _ask(prompt: tuple[Message, ...], words: str) -> tuple[Message, ...]:
    return (*prompt[:-1], Message("user", words))
