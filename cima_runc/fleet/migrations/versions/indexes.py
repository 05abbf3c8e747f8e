"""Indexes for what is looked at all the time: rows of containers and verdicts stay, and only few
are of now."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make them."""
    for name, table, columns, where in (
        ("ix_container_present", "container", ["host"], "slot IS NOT NULL"),
        ("ix_verdict_time", "verdict", ["time"], None),
        ("ix_finding_failed", "finding", ["id"], "severity = 'fail'"),
    ):
        condition = sa.text(where) if where else None
        op.create_index(
            name,
            table,
            columns,
            if_not_exists=True,
            postgresql_where=condition,
            sqlite_where=condition,
        )
