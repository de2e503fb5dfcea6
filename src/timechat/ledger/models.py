"""Models that jobs made: their `ft:` names, whose they are, and where their files lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, and_, insert, select, update

from timechat.ledger.database import Ledger
from timechat.ledger.tables import now_ms, tuned_models


@dataclass(frozen=True, slots=True)
class TunedModel:
    """A model that a job made; checkpoints are models too, and not listed."""

    name: str
    project: str
    job: str
    folder: str
    is_listed: bool
    created_ms: int


@dataclass(frozen=True)
class Models:
    """The tuned models of a ledger; every call is one project's, and another's are not there."""

    ledger: Ledger

    def get(self, name: str, project: str) -> TunedModel | None:
        with self.ledger.read() as connection:
            row = connection.execute(
                select(tuned_models).where(_living(project), tuned_models.c.name == name)
            ).first()
        return _model(row) if row is not None else None

    def list(self, project: str) -> Sequence[TunedModel]:
        """The listed models, in the order in which they were made."""
        query = select(tuned_models).where(_living(project), tuned_models.c.is_listed)
        with self.ledger.read() as connection:
            return [_model(row) for row in connection.execute(query.order_by(tuned_models.c.seq))]

    def remove(self, name: str, project: str) -> bool:
        """Take a model's name away; the run and its files stay. Whether it was there."""
        with self.ledger.write() as connection:
            return bool(
                connection.execute(
                    update(tuned_models)
                    .where(_living(project), tuned_models.c.name == name)
                    .values(deleted_ms=now_ms())
                ).rowcount
            )


def add_model(connection: Connection, model: TunedModel) -> None:
    """Enter a model inside a transaction that does more; a name that is known already is left."""
    known = select(tuned_models.c.seq).where(tuned_models.c.name == model.name)
    if connection.scalar(known) is None:
        values = {name: getattr(model, name) for name in TunedModel.__dataclass_fields__}
        connection.execute(insert(tuned_models).values(**values))


def remove_model(connection: Connection, name: str) -> None:
    """Take a name away inside a transaction that does more."""
    mine = tuned_models.c.name == name
    connection.execute(update(tuned_models).where(mine).values(deleted_ms=now_ms()))


def _living(project: str) -> Any:
    return and_(tuned_models.c.project == project, tuned_models.c.deleted_ms.is_(None))


def _model(row: Any) -> TunedModel:
    return TunedModel(**{name: getattr(row, name) for name in TunedModel.__dataclass_fields__})
