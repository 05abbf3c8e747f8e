"""Hosts' logs, entry by entry; what boots that are over had proved; records after an end.

Of what was confirmed before, the entries were not kept: each host is asked for its log once more,
and until it has shown it nothing new of it is trusted.
"""

import sqlalchemy as sa
from alembic import op

from cima_runc.fleet.row_security import statements

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_TABLES = ("host_boot", "host_log_part")


def _number() -> sa.types.TypeEngine[int]:
    return sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Make the tables; in PostgreSQL, with row-level security."""
    op.create_table(
        "host_boot",
        sa.Column("host", _number(), nullable=False),
        sa.Column("boot_id", sa.String(), nullable=False),
        sa.Column("status", sa.JSON(), nullable=False),
        sa.Column("pcrs", sa.JSON(), nullable=False),
        sa.Column("log_lines", _number(), nullable=False),
        sa.Column("log", sa.JSON(), nullable=False),
        sa.Column("has_boot_log", sa.Boolean(), nullable=False),
        sa.Column("ended", _number(), nullable=False),
        sa.ForeignKeyConstraint(["host"], ["host.id"], name=op.f("fk_host_boot_host")),
        sa.PrimaryKeyConstraint("host", "boot_id", name=op.f("pk_host_boot")),
    )
    op.create_table(
        "host_log_part",
        sa.Column("host", _number(), nullable=False),
        sa.Column("boot_id", sa.String(), nullable=False),
        sa.Column("first", _number(), nullable=False),
        sa.Column("digests", sa.LargeBinary(), nullable=False),
        sa.Column("shown", sa.LargeBinary(), nullable=True),
        sa.ForeignKeyConstraint(["host"], ["host.id"], name=op.f("fk_host_log_part_host")),
        sa.PrimaryKeyConstraint("host", "boot_id", "first", name=op.f("pk_host_log_part")),
    )
    if op.get_bind().dialect.name == "postgresql":
        for statement in statements(iter(_TABLES)):
            op.execute(statement)
    op.add_column("container", sa.Column("late", _number(), server_default="0", nullable=False))
    host = sa.table(
        "host",
        sa.column("log_lines", _number()),
        sa.column("log_value", sa.LargeBinary()),
        sa.column("log", sa.JSON()),
    )
    op.execute(
        host.update()
        .where(host.c.log_lines > 0)
        .values(log_lines=0, log_value=None, log={"hidden": True})
    )
