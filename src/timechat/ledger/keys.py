"""API keys, each of a project, kept as hashes: the key itself is shown once, when it is made."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from typing import Any

from sqlalchemy import insert, select, update

from timechat.errors import LedgerError
from timechat.ledger.database import Ledger
from timechat.ledger.tables import api_keys, now_ms


@dataclass(frozen=True, slots=True)
class Key:
    """A key as far as it is known: its project and its first characters."""

    project: str
    hint: str
    created_ms: int
    revoked_ms: int | None


def create_key(ledger: Ledger, project: str) -> str:
    """A new key for `project`. Raises LedgerError for a name that could tear a model's apart."""
    allowed = project.isascii() and all(c.isalnum() or c in "-_." for c in project)
    if not 1 <= len(project) <= 64 or not allowed:
        raise LedgerError(
            f"a project is 1 to 64 letters, digits, dots, dashes or underscores, not {project!r}"
        )
    key = f"sk-{secrets.token_urlsafe(32)}"
    content: dict[str, Any] = {
        "project": project,
        "digest": hashlib.sha256(key.encode()).hexdigest(),
        "hint": key[:9],
        "created_ms": now_ms(),
    }
    with ledger.write() as connection:
        connection.execute(insert(api_keys).values(**content))
    return key


def list_keys(ledger: Ledger) -> list[Key]:
    with ledger.read() as connection:
        rows = connection.execute(select(api_keys).order_by(api_keys.c.seq))
        return [Key(row.project, row.hint, row.created_ms, row.revoked_ms) for row in rows]


def revoke_key(ledger: Ledger, hint: str) -> Key:
    """Revoke the one key that begins with `hint`. Raises LedgerError when there is none or many."""
    found = [key for key in list_keys(ledger) if key.revoked_ms is None]
    found = [key for key in found if hint and key.hint.startswith(hint[: len(key.hint)])]
    if len(found) != 1:
        raise LedgerError(f"{len(found)} valid keys begin with {hint[:9]!r}: name just one")
    with ledger.write() as connection:
        connection.execute(
            update(api_keys)
            .where(api_keys.c.hint == found[0].hint, api_keys.c.revoked_ms.is_(None))
            .values(revoked_ms=now_ms())
        )
    return found[0]


def valid_keys(ledger: Ledger) -> dict[bytes, str]:
    """SHA-256 of every valid key, and its project."""
    with ledger.read() as connection:
        rows = connection.execute(select(api_keys).where(api_keys.c.revoked_ms.is_(None)))
        return {bytes.fromhex(row.digest): row.project for row in rows}
