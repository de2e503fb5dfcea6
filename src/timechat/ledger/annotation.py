"""A queue of things to judge, for several people at once, kept in the ledger.

Two tasks: `judge` one answer (or label) or correct it, and `choose` the better of two. The calls
are what a terminal and a page need alike: `claim`, `answer`, `undo`. Where items come from, and
what becomes of the judgements, is for `stages.annotate` and `stages.collect`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

from sqlalchemy import Connection, and_, delete, func, insert, literal, select, update

from timechat.conversation import Message
from timechat.errors import LedgerError, nearest
from timechat.ledger.database import Ledger
from timechat.ledger.tables import annotation_claims as claims
from timechat.ledger.tables import annotation_items as items
from timechat.ledger.tables import annotation_queues as queues
from timechat.ledger.tables import annotation_suggestions as suggestions
from timechat.ledger.tables import annotations as said_rows
from timechat.ledger.tables import now_ms

Task = Literal["judge", "choose"]
VERDICTS: dict[str, tuple[str, ...]] = {
    "judge": ("right", "corrected", "wrong", "skip"),
    "choose": ("first", "second", "tie", "neither", "skip"),
}
# An item that is on somebody's screen goes to nobody else for this long.
CLAIM_MS = 15 * 60 * 1000
MAX_TEXT = 100_000


@dataclass(frozen=True, slots=True)
class Answer:
    """A text to judge, and whose it is; the origin is never shown to who judges."""

    text: str
    origin: str = ""


@dataclass(frozen=True, slots=True)
class Suggestion:
    """What a model would answer."""

    model: str
    value: str


@dataclass(frozen=True, slots=True)
class Item:
    """One thing to judge. `prompt` are the messages before the answer.

    `judge` has one answer, or none where it is still to be written; `choose` has two. `id` is 0
    until the item is in a queue. `said` brings judgements along that were made elsewhere.
    """

    task: Task
    prompt: tuple[Message, ...]
    answers: tuple[Answer, ...]
    row_id: str = ""
    group: str = ""
    source: str = ""
    line: int = 0
    id: int = 0
    suggestions: tuple[Suggestion, ...] = ()
    said: tuple[Judgement, ...] = ()

    @property
    def cluster(self) -> str:
        """The unit of statistics, as in `Conversation`: the group, or the item itself."""
        return self.group or f"item {self.id}"

    @property
    def fingerprint(self) -> str:
        content: list[Any] = [self.task, [[m.role, m.content] for m in self.prompt]]
        content.append([a.text for a in self.answers])
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def shown_order(self, annotator: str) -> tuple[int, ...]:
        """The answers' order on this annotator's screen: a fair coin that falls the same again."""
        coin = hashlib.sha256(f"{self.fingerprint}/{annotator}".encode("utf-8", "replace")).digest()
        order = tuple(range(len(self.answers)))
        return order[::-1] if coin[0] & 1 else order


@dataclass(frozen=True, slots=True)
class Judgement:
    """What one person said of one item, and when. `suggested` names the model in view."""

    item: int
    annotator: str
    verdict: str
    value: str | None = None
    note: str = ""
    suggested: str | None = None
    seconds: float | None = None
    created_ms: int = 0


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a queue is; `mine` and `left` are one annotator's."""

    items: int
    finished: int
    mine: int
    left: int


@dataclass(frozen=True)
class Queue:
    """One named queue of a ledger."""

    ledger: Ledger
    id: int
    name: str
    annotators: int
    labels: tuple[str, ...] = field(default=())

    def add(self, new: Iterable[Item]) -> int:
        """Put items in, in order, with what was suggested and said of them elsewhere.

        An item that is in already is not put in twice, but takes what is new of it. Returns how
        many were new.
        """
        count = 0
        with self.ledger.write() as connection:
            query = select(items.c.fingerprint, items.c.id).where(items.c.queue == self.id)
            known: dict[str, int] = {row.fingerprint: row.id for row in connection.execute(query)}
            for item in new:
                number = known.get(item.fingerprint)
                if number is None:
                    row = insert(items).values(**_to_row(item, self.id)).returning(items.c.id)
                    number = known[item.fingerprint] = int(connection.scalars(row).one())
                    count += 1
                for suggestion in item.suggestions:
                    self._suggest(connection, number, suggestion)
                for judgement in item.said:
                    self._bring(connection, replace(judgement, item=number), item)
        return count

    def claim(self, annotator: str) -> Item | None:
        """The next item for this annotator, theirs for a while; None when nothing is left."""
        annotator = check_name(annotator)
        now = now_ms()
        with self.ledger.write() as connection:
            connection.execute(delete(claims).where(claims.c.until_ms <= now))
            found = connection.execute(
                select(items).where(*self._open_to(annotator)).order_by(items.c.id).limit(1)
            ).first()
            if found is None:
                return None
            mine = and_(claims.c.item == found.id, claims.c.annotator == annotator)
            connection.execute(delete(claims).where(mine))
            connection.execute(
                insert(claims).values(item=found.id, annotator=annotator, until_ms=now + CLAIM_MS)
            )
            return _with_suggestions(connection, [_from_row(found)])[0]

    def answer(self, judgement: Judgement) -> None:
        """Keep what somebody said; what the same person said of it before is withdrawn.

        Raises LedgerError for an unknown item or verdict, or a value that does not go with it.
        """
        annotator = check_name(judgement.annotator)
        with self.ledger.write() as connection:
            mine = and_(items.c.id == judgement.item, items.c.queue == self.id)
            found = connection.execute(select(items).where(mine)).first()
            if found is None:
                raise LedgerError(f"no item {judgement.item} in the queue {self.name!r}")
            self._check(judgement, _from_row(found))
            self._keep(connection, replace(judgement, annotator=annotator))
            connection.execute(
                delete(claims).where(
                    claims.c.item == judgement.item, claims.c.annotator == annotator
                )
            )

    def undo(self, annotator: str) -> Item | None:
        """Withdraw this annotator's latest judgement and claim its item again; None if there is
        none."""
        with self.ledger.write() as connection:
            last = connection.execute(
                select(said_rows.c.item)
                .join(items, items.c.id == said_rows.c.item)
                .where(items.c.queue == self.id, said_rows.c.annotator == annotator)
                .where(said_rows.c.withdrawn_ms.is_(None))
                .order_by(said_rows.c.id.desc())
                .limit(1)
            ).scalar()
            if last is None:
                return None
            self._withdraw(connection, last, annotator)
            connection.execute(delete(claims).where(claims.c.annotator == annotator))
            connection.execute(
                insert(claims).values(item=last, annotator=annotator, until_ms=now_ms() + CLAIM_MS)
            )
            found = connection.execute(select(items).where(items.c.id == last)).one()
            return _with_suggestions(connection, [_from_row(found)])[0]

    def suggest(self, item: int, suggestion: Suggestion) -> None:
        """Keep what a model would answer; a second one of the same model replaces the first."""
        with self.ledger.write() as connection:
            self._suggest(connection, item, suggestion)

    def progress(self, annotator: str) -> Progress:
        """How many items there are, are finished, were judged by `annotator`, and wait for them."""
        with self.ledger.read() as connection:
            everything = items.c.queue == self.id
            total = connection.scalar(select(func.count()).where(everything)) or 0
            finished = connection.scalar(
                select(func.count()).where(everything, _num_judged() >= self.annotators)
            )
            mine = connection.scalar(select(func.count()).where(everything, _judged_by(annotator)))
            left = connection.scalar(
                select(func.count())
                .select_from(items)
                .where(everything, ~_judged_by(annotator), _num_judged() < self.annotators)
            )
        return Progress(total, finished or 0, mine or 0, left or 0)

    def items(self) -> list[Item]:
        """Every item with its suggestions, in order."""
        with self.ledger.read() as connection:
            rows = connection.execute(
                select(items).where(items.c.queue == self.id).order_by(items.c.id)
            )
            return _with_suggestions(connection, [_from_row(row) for row in rows])

    def judgements(self) -> list[Judgement]:
        """Every judgement that stands, in the order in which they were made."""
        with self.ledger.read() as connection:
            rows = connection.execute(
                select(said_rows)
                .join(items, items.c.id == said_rows.c.item)
                .where(items.c.queue == self.id, said_rows.c.withdrawn_ms.is_(None))
                .order_by(said_rows.c.id)
            )
            names = Judgement.__dataclass_fields__
            return [Judgement(**{name: getattr(row, name) for name in names}) for row in rows]

    def by_item(self) -> dict[int, list[Judgement]]:
        """The judgements that stand, by item."""
        found: dict[int, list[Judgement]] = {}
        for judgement in self.judgements():
            found.setdefault(judgement.item, []).append(judgement)
        return found

    def _open_to(self, annotator: str) -> tuple[Any, ...]:
        """The conditions under which an item may go to `annotator`; first what is theirs."""
        others = (
            select(func.count())
            .where(claims.c.item == items.c.id, claims.c.annotator != annotator)
            .scalar_subquery()
        )
        is_wanted = _num_judged() + others < self.annotators
        return items.c.queue == self.id, ~_judged_by(annotator), is_wanted

    def _check(self, judgement: Judgement, item: Item) -> None:
        known = VERDICTS[item.task]
        if judgement.verdict not in known:
            raise LedgerError(
                f"item {item.id} is to {item.task}, and {judgement.verdict!r} is no verdict of "
                f"that: {nearest(judgement.verdict, known)}"
            )
        needs_value = judgement.verdict == "corrected"
        if needs_value != (judgement.value is not None):
            raise LedgerError(
                f"verdict {judgement.verdict!r} {'needs' if needs_value else 'takes no'} value"
            )
        if judgement.verdict in ("right", "wrong") and not item.answers:
            raise LedgerError(f"item {item.id} has no answer yet: correct it or skip it")
        if judgement.value is None:
            return
        if not judgement.value.strip() or len(judgement.value) > MAX_TEXT:
            raise LedgerError(
                f"a corrected answer has 1 to {MAX_TEXT:,} characters, not {len(judgement.value):,}"
            )
        if self.labels and judgement.value not in self.labels:
            raise LedgerError(
                f"{judgement.value!r} is none of this queue's labels: "
                f"{nearest(judgement.value, self.labels)}"
            )

    def _keep(self, connection: Connection, judgement: Judgement) -> None:
        self._withdraw(connection, judgement.item, judgement.annotator)
        content = asdict(judgement) | {"created_ms": judgement.created_ms or now_ms()}
        connection.execute(insert(said_rows).values(**content))

    def _bring(self, connection: Connection, judgement: Judgement, item: Item) -> None:
        """Keep a judgement made elsewhere, unless the same person said the same or later here."""
        self._check(judgement, item)
        theirs = (said_rows.c.item == judgement.item) & (
            said_rows.c.annotator == check_name(judgement.annotator)
        )
        standing = connection.execute(
            select(said_rows).where(theirs, said_rows.c.withdrawn_ms.is_(None))
        ).first()
        said = (judgement.verdict, judgement.value)
        is_known = standing is not None and (
            (standing.verdict, standing.value) == said
            or standing.created_ms >= judgement.created_ms > 0
        )
        if not is_known:
            self._keep(connection, judgement)

    def _suggest(self, connection: Connection, item: int, suggestion: Suggestion) -> None:
        same = (suggestions.c.item == item) & (suggestions.c.model == suggestion.model)
        connection.execute(delete(suggestions).where(same))
        content = {"item": item, "created_ms": now_ms()} | asdict(suggestion)
        connection.execute(insert(suggestions).values(**content))

    def _withdraw(self, connection: Connection, item: int, annotator: str) -> None:
        connection.execute(
            update(said_rows)
            .where(said_rows.c.item == item, said_rows.c.annotator == annotator)
            .where(said_rows.c.withdrawn_ms.is_(None))
            .values(withdrawn_ms=now_ms())
        )


def open_queue(
    ledger: Ledger, name: str, annotators: int | None = None, labels: Sequence[str] | None = None
) -> Queue:
    """The queue of that name, made when it is not there; what is given is set, the rest is kept."""
    if annotators is not None and annotators < 1:
        raise LedgerError(f"each item needs at least 1 annotator, not {annotators}")
    with ledger.write() as connection:
        found = connection.execute(select(queues).where(queues.c.name == name)).first()
        if found is None:
            fresh = {"name": name, "annotators": 1, "labels": [], "created_ms": now_ms()}
            connection.execute(insert(queues).values(**fresh))
            found = connection.execute(select(queues).where(queues.c.name == name)).one()
        queue = Queue(ledger, found.id, name, found.annotators, tuple(found.labels))
        if annotators is not None:
            queue = replace(queue, annotators=annotators)
        if labels is not None:
            queue = replace(queue, labels=tuple(dict.fromkeys(labels)))
        connection.execute(
            update(queues)
            .where(queues.c.id == queue.id)
            .values(annotators=queue.annotators, labels=list(queue.labels))
        )
    return queue


def check_name(annotator: str) -> str:
    """The annotator's name, stripped. Raises LedgerError for an empty or very long one."""
    name = annotator.strip()
    if not name or len(name) > 200 or not name.isprintable():
        raise LedgerError(
            f"an annotator's name has 1 to 200 printable characters, not {annotator!r}"
        )
    return name


def _standing() -> Any:
    return and_(said_rows.c.item == items.c.id, said_rows.c.withdrawn_ms.is_(None))


def _num_judged() -> Any:
    """How many people judged the item, those who skipped it not among them."""
    return (
        select(func.count())
        .where(_standing(), said_rows.c.verdict != "skip")
        .correlate(items)
        .scalar_subquery()
    )


def _judged_by(annotator: str) -> Any:
    return (
        select(literal(1))
        .where(_standing(), said_rows.c.annotator == annotator)
        .correlate(items)
        .exists()
    )


def _to_row(item: Item, queue: int) -> dict[str, Any]:
    return {
        "queue": queue,
        "task": item.task,
        "fingerprint": item.fingerprint,
        "row_id": item.row_id,
        "group_name": item.group,
        "source": item.source,
        "line": item.line,
        "prompt": [m.to_dict() for m in item.prompt],
        "answers": [{"text": a.text, "origin": a.origin} for a in item.answers],
        "created_ms": now_ms(),
    }


def _from_row(row: Any) -> Item:
    assert row.task in get_args(Task)
    return Item(
        task=row.task,
        prompt=tuple(Message(m["role"], m["content"], m.get("weight", 1.0)) for m in row.prompt),
        answers=tuple(Answer(a["text"], a["origin"]) for a in row.answers),
        row_id=row.row_id,
        group=row.group_name,
        source=row.source,
        line=row.line,
        id=row.id,
    )


def _with_suggestions(connection: Connection, found: list[Item]) -> list[Item]:
    by_item: dict[int, list[Suggestion]] = {}
    query = select(suggestions).order_by(suggestions.c.id)
    if len(found) == 1:
        query = query.where(suggestions.c.item == found[0].id)
    for row in connection.execute(query):
        by_item.setdefault(row.item, []).append(Suggestion(row.model, row.value))
    return [replace(item, suggestions=tuple(by_item.get(item.id, ()))) for item in found]
