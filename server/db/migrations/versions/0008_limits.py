"""What owners may use. None has a limit of its own yet."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_NAME, _LABEL = sa.String(length=64), sa.String(length=256)
_COUNTS = (
    *("requests_a_minute", "tokens_a_minute", "requests_at_once", "adapters", "files"),
    *("stored_bytes", "running_jobs", "waiting_jobs", "training_tokens_a_day"),
)


def upgrade() -> None:
    op.create_table(
        "limits",
        sa.Column("owner", _NAME, nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        *(sa.Column(name, sa.BigInteger(), nullable=True) for name in _COUNTS),
        sa.Column("weight", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(["owner"], ["owners.id"], name=op.f("fk_limits_owner_owners")),
        sa.PrimaryKeyConstraint("owner", name=op.f("pk_limits")),
    )
    op.create_index("ix_limits_revision", "limits", ["revision"])
    op.create_table(
        "buckets",
        sa.Column("key", _LABEL, nullable=False),
        sa.Column("full_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_buckets")),
    )
    op.create_table(
        "places",
        sa.Column("owner", _NAME, nullable=False),
        sa.Column("process", _NAME, nullable=False),
        sa.Column("held", sa.BigInteger(), nullable=False),
        sa.Column("seen_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("owner", "process", name=op.f("pk_places")),
    )
