"""Jobs tell how good their adapter is, with answers as samples."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for name in ("judgement", "samples"):
        op.add_column("jobs", sa.Column(name, sa.JSON(none_as_null=True), nullable=True))
