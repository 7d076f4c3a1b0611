"""Owners with names, users, memberships and keys. All that exists stays the default owner's."""

import secrets

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_COUNTER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_NAME, _LABEL = sa.String(length=64), sa.String(length=256)


def upgrade() -> None:
    _name_owners()
    op.create_table(
        "users",
        sa.Column("number", _COUNTER, nullable=False),
        sa.Column("id", _NAME, nullable=False),
        sa.Column("email", _LABEL, nullable=True),
        sa.Column("name", _LABEL, nullable=False),
        sa.Column("role", _NAME, nullable=False),
        sa.Column("service_of", _NAME, nullable=True),
        sa.Column("added_at", sa.BigInteger(), nullable=False),
        _foreign("users", "service_of", "owners"),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_users")),
        sa.UniqueConstraint("id", name=op.f("uq_users_id")),
        sa.UniqueConstraint("email", name=op.f("uq_users_email")),
    )
    op.create_index("ix_users_service_of", "users", ["service_of"])
    op.create_table(
        "memberships",
        sa.Column("number", _COUNTER, nullable=False),
        sa.Column("owner", _NAME, nullable=False),
        sa.Column("user", _NAME, nullable=False),
        sa.Column("role", _NAME, nullable=False),
        sa.Column("added_at", sa.BigInteger(), nullable=False),
        _foreign("memberships", "owner", "owners"),
        _foreign("memberships", "user", "users"),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_memberships")),
    )
    op.create_index("ix_memberships_owner", "memberships", ["owner", "user"], unique=True)
    op.create_index("ix_memberships_user", "memberships", ["user"])
    _make_keys()
    tenancy = op.create_table(
        "tenancy",
        sa.Column("number", _COUNTER, nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("seal", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_tenancy")),
    )
    op.bulk_insert(tenancy, [{"number": 1, "revision": 0, "seal": secrets.token_hex(32)}])


def _name_owners() -> None:
    op.add_column("owners", sa.Column("name", _LABEL, nullable=False, server_default=""))
    op.add_column("owners", sa.Column("folded", sa.Text(), nullable=False, server_default=""))
    op.add_column("owners", sa.Column("status", _NAME, nullable=False, server_default="active"))
    op.add_column("owners", sa.Column("archived_at", sa.BigInteger(), nullable=True))
    op.execute("UPDATE owners SET name = id, folded = id")
    op.create_index("ix_owners_folded", "owners", ["folded"], unique=True)


def _make_keys() -> None:
    """The table was never used: no version before this one wrote to it."""
    op.drop_table("keys")
    op.create_table(
        "keys",
        sa.Column("number", _COUNTER, nullable=False),
        sa.Column("id", _NAME, nullable=False),
        sa.Column("kind", _NAME, nullable=False),
        sa.Column("owner", _NAME, nullable=False),
        sa.Column("user", _NAME, nullable=True),
        sa.Column("name", _LABEL, nullable=False),
        sa.Column("scopes", sa.JSON(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("prefix", sa.String(length=16), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("created_by", _NAME, nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=True),
        sa.Column("last_used_at", sa.BigInteger(), nullable=True),
        sa.Column("revoked_at", sa.BigInteger(), nullable=True),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        _foreign("keys", "owner", "owners"),
        _foreign("keys", "user", "users"),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_keys")),
        sa.UniqueConstraint("id", name=op.f("uq_keys_id")),
        sa.UniqueConstraint("sha256", name=op.f("uq_keys_sha256")),
    )
    op.create_index("ix_keys_owner", "keys", ["owner", "number"])
    op.create_index("ix_keys_user", "keys", ["user"])
    op.create_index("ix_keys_revision", "keys", ["revision"])


def _foreign(table: str, column: str, other: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        [column], [f"{other}.id"], name=op.f(f"fk_{table}_{column}_{other}")
    )
