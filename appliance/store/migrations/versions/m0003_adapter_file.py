"""Releases have their adapter as a file of its own, which a loaded base can take on."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0003"
down_revision: str | None = "0002"


def upgrade() -> None:
    with op.batch_alter_table("releases") as table:
        table.add_column(sa.Column("adapter_file", sa.JSON(none_as_null=True), nullable=True))
