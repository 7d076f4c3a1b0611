"""Who people are at a sign-in provider, their sessions, and which memberships groups give."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_COUNTER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_NAME, _SHA256 = sa.String(length=64), sa.String(length=64)


def upgrade() -> None:
    op.add_column("memberships", sa.Column("source", _NAME, nullable=False, server_default="hand"))
    op.create_table(
        "identities",
        sa.Column("number", _COUNTER, nullable=False),
        sa.Column("issuer", sa.Text(), nullable=False),
        sa.Column("subject", sa.String(length=255), nullable=False),
        sa.Column("user_number", _COUNTER, nullable=False),
        sa.Column("admin_by_groups", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("last_sign_in_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(
            ["user_number"], ["users.number"], name=op.f("fk_identities_user_number_users")
        ),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_identities")),
    )
    op.create_index("ix_identities_issuer", "identities", ["issuer", "subject"], unique=True)
    op.create_index("ix_identities_user_number", "identities", ["user_number"])
    op.create_table(
        "sessions",
        sa.Column("number", _COUNTER, nullable=False),
        sa.Column("sha256", _SHA256, nullable=False),
        sa.Column("state_sha256", _SHA256, nullable=False),
        sa.Column("user", _NAME, nullable=False),
        sa.Column("kind", _NAME, nullable=False),
        sa.Column("challenge", _NAME, nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["user"], ["users.id"], name=op.f("fk_sessions_user_users")),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_sessions")),
        sa.UniqueConstraint("sha256", name=op.f("uq_sessions_sha256")),
        sa.UniqueConstraint("state_sha256", name=op.f("uq_sessions_state_sha256")),
    )
    op.create_index("ix_sessions_user", "sessions", ["user"])
    op.create_index("ix_sessions_expires_at", "sessions", ["expires_at"])
