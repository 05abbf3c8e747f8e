"""Tokens: what they may be for, and which were issued."""

import sqlalchemy as sa
from alembic import op

from cima_runc.fleet.row_security import statements

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_TABLES = ("token_grant", "issued_token")


def _number() -> sa.types.TypeEngine[int]:
    return sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Make the tables; in PostgreSQL, with row-level security."""
    op.create_table(
        "token_grant",
        sa.Column("id", _number(), autoincrement=True, nullable=False),
        sa.Column("uid", sa.String(length=24), nullable=False),
        sa.Column("tenant", _number(), nullable=True),
        sa.Column("policy", sa.String(), nullable=False),
        sa.Column("audience", sa.String(), nullable=False),
        sa.Column("created", _number(), nullable=False),
        sa.Column("created_by", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["tenant"], ["tenant.id"], name=op.f("fk_token_grant_tenant")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_token_grant")),
        sa.UniqueConstraint("uid", name=op.f("uq_token_grant_uid")),
    )
    op.create_table(
        "issued_token",
        sa.Column("jti", sa.String(length=32), nullable=False),
        sa.Column("container", _number(), nullable=False),
        sa.Column("tenant", _number(), nullable=True),
        sa.Column("audience", sa.String(), nullable=False),
        sa.Column("policy", sa.String(), nullable=False),
        sa.Column("issued", _number(), nullable=False),
        sa.Column("expires", _number(), nullable=False),
        sa.ForeignKeyConstraint(
            ["container"], ["container.id"], name=op.f("fk_issued_token_container")
        ),
        sa.ForeignKeyConstraint(["tenant"], ["tenant.id"], name=op.f("fk_issued_token_tenant")),
        sa.PrimaryKeyConstraint("jti", name=op.f("pk_issued_token")),
    )
    op.create_index(op.f("ix_issued_token_expires"), "issued_token", ["expires"], unique=False)
    if op.get_bind().dialect.name == "postgresql":
        for statement in statements(iter(_TABLES)):
            op.execute(statement)
