"""Version 4: how long a file that comes in parts is kept once it is whole."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("uploads", sa.Column("keep_seconds", sa.Integer))
