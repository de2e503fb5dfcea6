"""Version 5: in what the better of two answers is better."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    # Null, not an empty list, for what was said before: nobody was asked.
    op.add_column("annotations", sa.Column("ticks", sa.JSON(none_as_null=True)))
