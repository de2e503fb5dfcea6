"""A page of a list that grows while it is read: cut by place, so that pages meet without gap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Table, select

from timechat.ledger.database import Ledger


def read_page(
    ledger: Ledger,
    table: Table,
    wanted: Sequence[ColumnElement[bool]],
    after: str | None,
    limit: int,
    newest_first: bool = True,
) -> tuple[Sequence[Any], bool] | None:
    """Up to `limit` of the wanted rows behind the one of id `after`, and whether more follow.

    None where no wanted row has that id. The table has the columns `id` and `seq`.
    """
    place, name = table.c.seq, table.c.id
    conditions = list(wanted)
    with ledger.read() as connection:
        if after is not None:
            known = connection.scalar(select(place).where(*wanted, name == after))
            if known is None:
                return None
            conditions.append(place < known if newest_first else place > known)
        order = place.desc() if newest_first else place
        query = select(table).where(*conditions).order_by(order).limit(limit + 1)
        rows = connection.execute(query).all()
    return rows[:limit], len(rows) > limit
