"""How long the longest row of a file is: what a training on it takes follows from it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0002"
down_revision: str | None = "0001"


def upgrade() -> None:
    with op.batch_alter_table("files") as table:
        table.add_column(sa.Column("longest_row_bytes", sa.Integer(), nullable=True))
