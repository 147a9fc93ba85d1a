"""Where jobs run, what recordings are, and names of tokens in the audit, which are longer than those of keys."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

__all__ = ["downgrade", "upgrade"]

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_COLUMNS = (("jobs", "place", 300), ("recordings", "name", 300), ("recordings", "format", 32))


def upgrade() -> None:
    """Add and widen columns."""
    with op.batch_alter_table("audit") as table:
        table.alter_column("key_id", existing_type=sa.String(12), type_=sa.String(200), existing_nullable=True)
    for name, column, length in _COLUMNS:
        with op.batch_alter_table(name) as table:
            table.add_column(sa.Column(column, sa.String(length), server_default="", nullable=False))
        # For the rows that were there; whoever adds one says what it holds.
        with op.batch_alter_table(name) as table:
            table.alter_column(column, existing_type=sa.String(length), existing_nullable=False, server_default=None)


def downgrade() -> None:
    """Take them back. Names of tokens in the audit go; whose tokens they were stays."""
    op.execute("UPDATE audit SET key_id = NULL WHERE length(key_id) > 12")
    with op.batch_alter_table("audit") as table:
        table.alter_column("key_id", existing_type=sa.String(200), type_=sa.String(12), existing_nullable=True)
    for name, column, _ in reversed(_COLUMNS):
        with op.batch_alter_table(name) as table:
            table.drop_column(column)
