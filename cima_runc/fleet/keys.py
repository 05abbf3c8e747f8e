"""Keys that all processes of the service share: made once, kept in the database."""

import secrets

from sqlalchemy import Connection, insert, select, text

from cima_runc.fleet import clock
from cima_runc.fleet.schema import ServiceKey, table_of

NONCE = "nonce"
"""The MAC of nonces: reports are fresh by it."""
SESSION = "session"
"""The MAC of sessions: what a proved host shows when it asks for what others want of it."""
_BYTES = 32
_LOCK = 0x6B657973


def key_of(connection: Connection, purpose: str) -> bytes:
    """Return the key that is used now for ``purpose``, 32 bytes; make it where there is none.

    In a transaction that may write. Of processes that begin at once one makes it.
    """
    table = table_of(ServiceKey)
    query = (
        select(table.c.secret)
        .where(table.c.purpose == purpose, table.c.retired.is_(None))
        .order_by(table.c.id)
        .limit(1)
    )
    found = connection.execute(query).scalar()
    if found is None and connection.dialect.name == "postgresql":
        connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
        found = connection.execute(query).scalar()
    if found is not None:
        return bytes(found)
    made = secrets.token_bytes(_BYTES)
    connection.execute(
        insert(table).values(
            purpose=purpose, kid=secrets.token_hex(8), secret=made, created=clock.now()
        )
    )
    return made
