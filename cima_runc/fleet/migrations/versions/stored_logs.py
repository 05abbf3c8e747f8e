"""Hosts' logs count among what is kept of each."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add them to what is counted."""
    number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    host = sa.table("host", sa.column("id", number), sa.column("stored", number))
    part = sa.table(
        "host_log_part",
        sa.column("host", number),
        sa.column("digests", sa.LargeBinary()),
        sa.column("shown", sa.LargeBinary()),
    )
    length = sa.func.length(part.c.digests) + sa.func.coalesce(sa.func.length(part.c.shown), 0)
    size = (
        sa.select(sa.func.coalesce(sa.func.sum(length), 0))
        .where(part.c.host == host.c.id)
        .scalar_subquery()
    )
    op.execute(host.update().values(stored=host.c.stored + size))
