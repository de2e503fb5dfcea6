"""Opening: durable settings, migrations from every version, one writer, clear refusals."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import inspect, text

from timechat.errors import LedgerError
from timechat.ledger.annotation import open_queue
from timechat.ledger.database import Ledger, _engine, _url, open_ledger
from timechat.ledger.migrations import revisions, upgrade
from timechat.ledger.tables import metadata


def test_sqlite_is_in_wal_with_full_sync_and_foreign_keys(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path / "l.db")
    with ledger.read() as connection:
        settings = {
            name: connection.execute(text(f"PRAGMA {name}")).scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        }
    assert settings == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}
    ledger.close()


@pytest.mark.parametrize("revision", revisions())
def test_every_version_comes_up_to_the_tables_of_today(ledger_url: str, revision: str) -> None:
    old = Ledger(_engine(_url(ledger_url)))
    with old.write() as connection:
        upgrade(connection, revision)
        connection.execute(
            text(
                "INSERT INTO annotation_queues (name, annotators, labels, created_ms)"
                " VALUES ('kept', 2, '[]', 5)"
            )
        )
    old.close()
    ledger = open_ledger(ledger_url)
    with ledger.read() as connection:
        kept = connection.execute(text("SELECT name, annotators FROM annotation_queues")).all()
        differences = compare_metadata(MigrationContext.configure(connection), metadata)
    ledger.close()
    assert [tuple(row) for row in kept] == [("kept", 2)]
    assert differences == []


@pytest.mark.parametrize("revision", [r for r in revisions() if r < "0005"])
def test_what_people_said_before_there_were_ticks_is_kept_as_not_asked(
    ledger_url: str, revision: str
) -> None:
    old = Ledger(_engine(_url(ledger_url)))
    rows = (
        "annotation_queues (id, name, annotators, labels, created_ms)"
        " VALUES (1, 'own', 1, '[]', 5)",
        "annotation_items (id, queue, task, fingerprint, row_id, group_name, source, line, prompt,"
        " answers, created_ms) VALUES (1, 1, 'choose', 'f', 'r', '', '', 0, '[]',"
        """ '[{"text": "a", "origin": ""}, {"text": "b", "origin": ""}]', 5)""",
        "annotations (id, item, annotator, verdict, note, created_ms)"
        " VALUES (1, 1, 'ann', 'second', '', 5)",
    )
    with old.write() as connection:
        upgrade(connection, revision)
        for row in rows:
            connection.exec_driver_sql(f"INSERT INTO {row}")
    old.close()
    ledger = open_ledger(ledger_url)
    found = open_queue(ledger, "own").judgements()
    ledger.close()
    assert [(j.annotator, j.verdict, j.ticks) for j in found] == [("ann", "second", None)]


def test_a_migration_that_fails_leaves_nothing(
    ledger_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import timechat.ledger.migrations as migrations

    whole = migrations.command.upgrade

    def fail(*arguments: object) -> None:
        whole(*arguments)
        raise RuntimeError("pulled plug")

    monkeypatch.setattr(migrations.command, "upgrade", fail)
    with pytest.raises(RuntimeError, match="pulled plug"):
        open_ledger(ledger_url)
    monkeypatch.undo()
    engine = _engine(_url(ledger_url))
    assert inspect(engine).get_table_names() == []
    engine.dispose()


def test_a_ledger_of_a_newer_version_is_refused(ledger: Ledger, ledger_url: str) -> None:
    with ledger.write() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(LedgerError, match="newer"):
        open_ledger(ledger_url)


def test_a_write_that_raises_keeps_nothing(ledger: Ledger) -> None:
    insert = text(
        "INSERT INTO annotation_queues (name, annotators, labels, created_ms)"
        " VALUES ('x', 1, '[]', 0)"
    )

    def fail() -> None:
        with ledger.write() as connection:
            connection.execute(insert)
            raise KeyError("no")

    with pytest.raises(KeyError):
        fail()
    with ledger.read() as connection:
        assert connection.execute(text("SELECT count(*) FROM annotation_queues")).scalar() == 0


def test_writers_take_turns_and_lose_nothing(ledger: Ledger) -> None:
    with ledger.write() as connection:
        connection.execute(
            text(
                "INSERT INTO annotation_queues (name, annotators, labels, created_ms)"
                " VALUES ('counter', 0, '[]', 0)"
            )
        )

    def count() -> None:
        for _ in range(10):
            with ledger.write() as connection:
                now = connection.execute(text("SELECT annotators FROM annotation_queues")).scalar()
                connection.execute(text(f"UPDATE annotation_queues SET annotators = {now} + 1"))

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with ledger.read() as connection:
        assert connection.execute(text("SELECT annotators FROM annotation_queues")).scalar() == 40


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("mysql://x/y", "SQLite or PostgreSQL"),
        ("nowhere://x", "SQLite or PostgreSQL|no driver|no database"),
        ("no/such/folder/ledger.db", "no folder"),
        ("postgresql://nobody@127.0.0.1:1/x?connect_timeout=1", "cannot open"),
    ],
)
def test_a_wrong_address_is_refused_with_what_to_do(where: str, expected: str) -> None:
    with pytest.raises(LedgerError, match=expected):
        open_ledger(where)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "l.db").write_bytes(b"not a database at all" * 100)
    with pytest.raises(LedgerError, match="not a ledger"):
        open_ledger(tmp_path / "l.db")


def test_a_password_is_not_shown(tmp_path: Path) -> None:
    with pytest.raises(LedgerError) as caught:
        open_ledger("postgresql://me:hunter2@127.0.0.1:1/x?connect_timeout=1")
    assert "hunter2" not in str(caught.value)
