"""How much is kept of each host."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_EACH = 1024


def upgrade() -> None:
    """Count what there is."""
    number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    columns = {one["name"] for one in sa.inspect(op.get_bind()).get_columns("host")}
    if "stored" not in columns:
        op.add_column("host", sa.Column("stored", number, server_default="0", nullable=False))
    host = sa.table("host", sa.column("id", number), sa.column("stored", number))
    container = sa.table("container", sa.column("id", number), sa.column("host", number))
    sizes: list[sa.ScalarSelect[int]] = [
        sa.select(sa.func.count() * _EACH)
        .select_from(container)
        .where(container.c.host == host.c.id)
        .scalar_subquery()
    ]
    for name in ("record", "held"):
        kept = sa.table(
            name, sa.column("container", number), sa.column("content", sa.LargeBinary())
        )
        sizes.append(
            sa.select(sa.func.coalesce(sa.func.sum(sa.func.length(kept.c.content)), 0))
            .select_from(kept.join(container, container.c.id == kept.c.container))
            .where(container.c.host == host.c.id)
            .scalar_subquery()
        )
    op.execute(host.update().values(stored=sizes[0] + sizes[1] + sizes[2]))
