"""Which files a base model was imported from, by digest."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0007"
down_revision: str | None = "0006"


def upgrade() -> None:
    op.add_column("base_models", sa.Column("sources", sa.JSON(none_as_null=True), nullable=True))
