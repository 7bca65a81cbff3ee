"""Sessions that are being ended, and nodes that are being drained."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "v0002"
down_revision = "v0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """To this step. Not in batches: SQLite would copy `nodes`, and drop what hangs on it."""
    op.add_column(
        "sessions", sa.Column("ending", sa.Boolean(), nullable=False, server_default=sa.false())
    )
    op.add_column(
        "nodes", sa.Column("drain", sa.String(length=16), nullable=False, server_default="none")
    )
    op.add_column("nodes", sa.Column("drain_deadline_s", sa.Integer(), nullable=True))
    op.add_column("nodes", sa.Column("drain_until_ms", sa.BigInteger(), nullable=True))


def downgrade() -> None:
    """Back to the step before."""
    for column in ("drain_until_ms", "drain_deadline_s", "drain"):
        op.drop_column("nodes", column)
    op.drop_column("sessions", "ending")
