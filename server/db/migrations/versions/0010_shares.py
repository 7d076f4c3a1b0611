"""Shares of adapters among owners."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

_COUNTER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_NAME = sa.String(length=64)


def upgrade() -> None:
    changed = sa.Column("shares_revision", sa.BigInteger(), nullable=False, server_default="0")
    op.add_column("owners", changed)
    op.create_index("ix_owners_shares_revision", "owners", ["shares_revision"])
    op.create_table(
        "shares",
        sa.Column("number", _COUNTER, nullable=False),
        sa.Column("id", _NAME, nullable=False),
        sa.Column("owner", _NAME, nullable=False),
        sa.Column("adapter", _NAME, nullable=False),
        sa.Column("receiver", _NAME, nullable=True),
        sa.Column("to", _NAME, nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("created_by", _NAME, nullable=False),
        sa.ForeignKeyConstraint(["owner"], ["owners.id"], name=op.f("fk_shares_owner_owners")),
        sa.ForeignKeyConstraint(
            ["receiver"], ["owners.id"], name=op.f("fk_shares_receiver_owners")
        ),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_shares")),
        sa.UniqueConstraint("id", name=op.f("uq_shares_id")),
    )
    op.create_index("ix_shares_owner", "shares", ["owner"])
    op.create_index("ix_shares_receiver", "shares", ["receiver"])
