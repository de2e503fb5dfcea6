"""Opening a ledger: SQLite in a file by default, PostgreSQL by URL, the same semantics on both.

There is one writer at a time on both: SQLite by its own lock, taken at the start of a transaction,
PostgreSQL by an advisory lock. A ledger's writes are small and rare, and what one writer at a time
cannot do is race. Readers never wait. Which rows there are is for `tables`.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DatabaseError, NoSuchModuleError, OperationalError
from sqlalchemy.pool import NullPool

from timechat.errors import LedgerError
from timechat.ledger.migrations import upgrade

LEDGER_FILE = "ledger.db"
WRITES = "timechat_writes"
BUSY_SECONDS = 60
# Any number that no other user of the database locks; "timechat" in ASCII, cut to 63 bits.
WRITER_LOCK = int.from_bytes(b"timechat") >> 1


class Ledger:
    """An open ledger. Everything happens inside `read()` or `write()`, each one transaction."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    @contextmanager
    def read(self) -> Generator[Connection]:
        """One consistent view."""
        with self.engine.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def write(self) -> Generator[Connection]:
        """The only writer until the block ends; all of it is kept, or nothing when it raises."""
        with self.engine.connect() as connection:
            connection = connection.execution_options(**{WRITES: True})
            with connection.begin():
                if self.engine.dialect.name == "postgresql":
                    connection.execute(text(f"SELECT pg_advisory_xact_lock({WRITER_LOCK})"))
                yield connection

    def close(self) -> None:
        self.engine.dispose()


def default_ledger() -> Path:
    """Where a server keeps what belongs to no run: `$TIMECHAT_DATA`, or the user's data folder.

    The folder is made where it is missing, for this user alone.
    """
    share = os.environ.get("XDG_DATA_HOME", Path.home() / ".local" / "share")
    folder = Path(os.environ.get("TIMECHAT_DATA") or Path(share) / "timechat")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder / LEDGER_FILE


def open_ledger(where: str | Path) -> Ledger:
    """Open the ledger at a path or URL, made or brought up to date as needed. Raises LedgerError.

    A `postgresql://` URL is PostgreSQL; anything without `://` is the path of an SQLite file.
    """
    url = _url(where)
    try:
        engine = _engine(url)
    except (NoSuchModuleError, ModuleNotFoundError) as error:
        raise LedgerError(
            f"no driver for {url.render_as_string()} ({error}): use an SQLite path, or "
            "postgresql:// with `pip install timechat[postgresql]`"
        ) from None
    ledger = Ledger(engine)
    try:
        with ledger.write() as connection:
            upgrade(connection)
    except Exception as error:
        ledger.close()
        shown = url.render_as_string()
        if isinstance(error, OperationalError):
            raise LedgerError(f"cannot open the ledger at {shown}: {error.orig}") from None
        if isinstance(error, DatabaseError):
            what = f"{shown} is not a ledger ({error.orig}): name another file"
            raise LedgerError(what) from None
        raise
    return ledger


def _url(where: str | Path) -> URL:
    if isinstance(where, Path) or "://" not in where:
        path = Path(where)
        if not path.parent.is_dir():
            raise LedgerError(f"no folder {path.parent} for the ledger {path.name}: make it first")
        return URL.create("sqlite", database=str(path))
    try:
        url = make_url(where)
    except ArgumentError as error:
        raise LedgerError(f"{where!r} is no database URL: {error}") from None
    if url.drivername in ("postgresql", "postgres"):
        return url.set(drivername="postgresql+psycopg")
    if url.get_backend_name() not in ("sqlite", "postgresql"):
        raise LedgerError(
            f"a ledger is SQLite or PostgreSQL, not {url.drivername}: give a path or postgresql://"
        )
    return url


def _engine(url: URL) -> Engine:
    if url.get_backend_name() == "postgresql":
        return create_engine(url, pool_pre_ping=True)
    # A connection to a file is cheap, and one that is not kept cannot be forgotten open.
    engine = create_engine(url, poolclass=NullPool, connect_args={"timeout": BUSY_SECONDS})
    event.listen(engine, "connect", _set_up)
    event.listen(engine, "begin", _begin)
    return engine


def _set_up(connection: Any, _: Any) -> None:
    # Transactions are begun by `_begin`, not by the driver's guess at which statements need one.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin(connection: Connection) -> None:
    writes = connection.get_execution_options().get(WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
