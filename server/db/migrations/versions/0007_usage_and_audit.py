"""Usage by the hour, and a trail of what was changed."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_COUNTER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_NAME, _LABEL = sa.String(length=64), sa.String(length=256)
_COUNTS = ("requests", "refusals", "prompt", "cached", "completion", "training")

# The trail is only added to. Old rows may be deleted, as `--audit-days` says.
_NO_CHANGE_SQLITE = """
CREATE TRIGGER audit_unchanged BEFORE UPDATE ON audit
BEGIN SELECT RAISE(ABORT, 'rows of the audit trail cannot be changed'); END
"""
_REFUSE_POSTGRES = """
CREATE FUNCTION audit_unchanged() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN RAISE EXCEPTION 'rows of the audit trail cannot be changed'; END $$
"""
_NO_CHANGE_POSTGRES = """
CREATE TRIGGER audit_unchanged BEFORE UPDATE ON audit
FOR EACH ROW EXECUTE FUNCTION audit_unchanged()
"""


def upgrade() -> None:
    op.create_table(
        "audit",
        sa.Column("number", _COUNTER, nullable=False),
        sa.Column("id", _NAME, nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("owner", _NAME, nullable=True),
        sa.Column("actor", _LABEL, nullable=False),
        sa.Column("key", _NAME, nullable=True),
        sa.Column("address", _NAME, nullable=False),
        sa.Column("action", _NAME, nullable=False),
        sa.Column("object", sa.Text(), nullable=False),
        sa.Column("before", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("after", sa.JSON(none_as_null=True), nullable=True),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_audit")),
        sa.UniqueConstraint("id", name=op.f("uq_audit_id")),
    )
    op.create_index("ix_audit_owner", "audit", ["owner", "number"])
    op.create_index("ix_audit_at", "audit", ["at"])
    _refuse_changes()
    op.create_table(
        "usage",
        sa.Column("start", sa.BigInteger(), nullable=False, autoincrement=False),
        *(sa.Column(name, _NAME, nullable=False) for name in ("owner", "key", "user")),
        sa.Column("model", _LABEL, nullable=False),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in _COUNTS),
        sa.PrimaryKeyConstraint("start", "owner", "key", "user", "model", name=op.f("pk_usage")),
    )
    op.create_index("ix_usage_owner", "usage", ["owner", "start"])
    op.create_table(
        "usage_writers",
        sa.Column("writer", _NAME, nullable=False),
        sa.Column("batch", sa.BigInteger(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("writer", name=op.f("pk_usage_writers")),
    )
    op.add_column("jobs", sa.Column("key", _NAME, nullable=True))
    op.add_column("jobs", sa.Column("user", _NAME, nullable=True))


def _refuse_changes() -> None:
    if op.get_bind().dialect.name == "sqlite":
        op.execute(_NO_CHANGE_SQLITE)
    else:
        op.execute(_REFUSE_POSTGRES)
        op.execute(_NO_CHANGE_POSTGRES)
