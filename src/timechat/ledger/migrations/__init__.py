"""Bringing a ledger of any earlier version up to this one, inside one transaction.

A version is a file of `versions/`, never changed once it is on main: it says what the tables were
then, and must not read `tables`, which says what they are now.
"""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from timechat.errors import LedgerError


def upgrade(connection: Connection, revision: str = "head") -> None:
    """Bring the ledger behind `connection` up to `revision`. Raises LedgerError for a newer one."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    scripts = ScriptDirectory.from_config(config)
    current = MigrationContext.configure(connection).get_current_revision()
    if current is not None and current not in revisions(scripts):
        raise LedgerError(
            f"this ledger has version {current}, which is newer than this TimeChat knows: use the "
            "TimeChat that wrote it, or a newer one"
        )
    if current != scripts.get_current_head():
        command.upgrade(config, revision)


def revisions(scripts: ScriptDirectory | None = None) -> list[str]:
    """Every version, oldest first."""
    scripts = scripts or ScriptDirectory(str(Path(__file__).parent))
    return [script.revision for script in scripts.walk_revisions()][::-1]
