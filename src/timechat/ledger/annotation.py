"""A queue of things to judge, for several people at once, kept in the ledger.

The calls are what a terminal and a page need alike: `claim`, `answer`, `undo`. What may be said of
an item is `judging`'s; where items come from, and what becomes of the judgements, is for
`stages.annotating.annotate` and `stages.annotating.collect`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from sqlalchemy import Connection, and_, delete, func, insert, literal, select, update

from timechat.errors import LedgerError
from timechat.ledger.database import Ledger
from timechat.ledger.items import from_row, to_row, with_suggestions
from timechat.ledger.judging import Item, Judgement, Suggestion, check_name, check_said
from timechat.ledger.tables import annotation_claims as claims
from timechat.ledger.tables import annotation_items as items
from timechat.ledger.tables import annotation_queues as queues
from timechat.ledger.tables import annotation_suggestions as suggestions
from timechat.ledger.tables import annotations as said_rows
from timechat.ledger.tables import now_ms

# An item that is on somebody's screen goes to nobody else for this long.
CLAIM_MS = 15 * 60 * 1000


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
                    row = insert(items).values(**to_row(item, self.id)).returning(items.c.id)
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
            return with_suggestions(connection, [from_row(found)])[0]

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
            check_said(judgement, from_row(found), self.labels)
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
            return with_suggestions(connection, [from_row(found)])[0]

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
            return with_suggestions(connection, [from_row(row) for row in rows])

    def judgements(self) -> list[Judgement]:
        """Every judgement that stands, in the order in which they were made."""
        with self.ledger.read() as connection:
            rows = connection.execute(
                select(said_rows)
                .join(items, items.c.id == said_rows.c.item)
                .where(items.c.queue == self.id, said_rows.c.withdrawn_ms.is_(None))
                .order_by(said_rows.c.id)
            )
            return [_as_judgement(row) for row in rows]

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

    def _keep(self, connection: Connection, judgement: Judgement) -> None:
        self._withdraw(connection, judgement.item, judgement.annotator)
        content = asdict(judgement) | {"created_ms": judgement.created_ms or now_ms()}
        connection.execute(insert(said_rows).values(**content))

    def _bring(self, connection: Connection, judgement: Judgement, item: Item) -> None:
        """Keep a judgement made elsewhere, unless the same person said the same or later here."""
        check_said(judgement, item, self.labels)
        theirs = (said_rows.c.item == judgement.item) & (
            said_rows.c.annotator == check_name(judgement.annotator)
        )
        standing = connection.execute(
            select(said_rows).where(theirs, said_rows.c.withdrawn_ms.is_(None))
        ).first()
        if standing is not None:
            old = _as_judgement(standing)
            is_same = (old.verdict, old.value) == (judgement.verdict, judgement.value)
            # A file that knows nothing of ticks takes none back.
            is_same &= judgement.ticks in (None, old.ticks)
            if is_same or old.created_ms >= judgement.created_ms > 0:
                return
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


def _as_judgement(row: Any) -> Judgement:
    content = {name: getattr(row, name) for name in Judgement.__dataclass_fields__}
    ticks = content.pop("ticks")
    return Judgement(**content, ticks=None if ticks is None else tuple(ticks))


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
