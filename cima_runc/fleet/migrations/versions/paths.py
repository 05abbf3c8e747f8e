"""Of long paths their beginning is indexed: PostgreSQL refuses the row otherwise."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the index anew."""
    op.drop_index("ix_record_path", "record")
    op.create_index("ix_record_path", "record", [sa.text("substr(path, 1, 1024)"), "container"])
