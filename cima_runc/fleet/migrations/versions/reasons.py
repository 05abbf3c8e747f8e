"""Reasons of verdicts that name what a host's log shows of others are said without it.

They stand in histories and events, which everybody sees who sees the container.
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_SAID = "what the host's log shows is not as it should be: its operator sees what"
_ENDS = (
    " of the host is not in the host's reference values",
    " of the host is another one than the reference's",
    " of the host changed while IMA measured it",
    " of the host changed while IMA measured it, and the container relies on it",
    " of the host's log says of no file what it is",
)


def upgrade() -> None:
    """Put one sentence in the place of all of them."""
    connection = op.get_bind()
    verdict = sa.table("verdict", sa.column("why", sa.String()))
    ends = [verdict.c.why.endswith(end, autoescape=True) for end in _ENDS]
    connection.execute(verdict.update().where(sa.or_(*ends)).values(why=_SAID))
    event = sa.table(
        "event",
        sa.column("id", sa.BigInteger()),
        sa.column("kind", sa.String()),
        sa.column("data", sa.JSON()),
    )
    named = sa.cast(event.c.data, sa.String()).contains(" of the host")
    rows = connection.execute(
        sa.select(event.c.id, event.c.data).where(event.c.kind == "container.verdict", named)
    ).all()
    for row in rows:
        if str(row.data.get("why", "")).endswith(_ENDS):
            data = {**row.data, "why": _SAID}
            connection.execute(event.update().where(event.c.id == row.id).values(data=data))
