"""Owners that are being deleted."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

_NAME = sa.String(length=64)


def upgrade() -> None:
    op.create_table(
        "deletions",
        sa.Column("owner", _NAME, nullable=False),
        sa.Column("export", _NAME, nullable=True),
        sa.Column("step", _NAME, nullable=False),
        sa.Column("requested_at", sa.BigInteger(), nullable=False),
        sa.Column("done_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["owner"], ["owners.id"], name=op.f("fk_deletions_owner_owners")),
        sa.PrimaryKeyConstraint("owner", name=op.f("pk_deletions")),
    )
