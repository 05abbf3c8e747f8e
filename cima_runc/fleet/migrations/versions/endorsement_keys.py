"""An endorsement key's digest is over the key itself, not over what a host says beside it."""

import json
from base64 import b64decode

import sqlalchemy as sa
from alembic import op

from cima_runc.tpm.credential import ek_key_digest

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Compute each digest anew, from what the TPM showed."""
    connection = op.get_bind()
    for name in ("host", "enrolment"):
        table = sa.table(
            name,
            sa.column("id", sa.BigInteger()),
            sa.column("tpm", sa.LargeBinary()),
            sa.column("ek_digest", sa.String()),
        )
        for row in connection.execute(sa.select(table.c.id, table.c.tpm)).all():
            shown = json.loads(row.tpm).get("ek_public")
            if shown is None:
                continue  # without what its TPM showed, the digest stays what it is known by
            connection.execute(
                table.update()
                .where(table.c.id == row.id)
                .values(ek_digest=ek_key_digest(b64decode(shown)).hex())
            )
