"""What persons changed, each entry chained to the one before by its digest.

digest = SHA256(digest before || JCS of number, time, actor, action, subject and detail); before the
first stand 32 zero bytes. Whoever keeps one digest elsewhere sees whether what led to it was
changed later.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

import rfc8785
from sqlalchemy import Connection, insert, select, text

from cima_runc.fleet import clock
from cima_runc.fleet.schema import Audit, table_of

_LOCK = 0x61756469
_START = bytes(32)
_AUDIT = table_of(Audit)


@dataclass(frozen=True)
class Verified:
    """What a walk along the chain has found."""

    entries: int
    head: str
    """The last entry's digest."""
    broken: int | None
    """Number of the first entry that does not fit; None: all fit."""


def note(
    connection: Connection, actor: str, action: str, subject: str, detail: dict[str, Any]
) -> None:
    """Append an entry, in the transaction of the change that it is about."""
    if connection.dialect.name == "postgresql":
        # One after the other, until this transaction has ended.
        connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
    last = connection.execute(
        select(_AUDIT.c.number, _AUDIT.c.digest).order_by(_AUDIT.c.number.desc()).limit(1)
    ).first()
    number, before = (last.number + 1, bytes.fromhex(last.digest)) if last else (1, _START)
    entry = {
        "number": number,
        "time": clock.now(),
        "actor": actor,
        "action": action,
        "subject": subject,
        "detail": detail,
    }
    connection.execute(insert(_AUDIT).values(**entry, digest=_digest(before, entry).hex()))


def verify(connection: Connection) -> Verified:
    """Walk along the chain, from its first entry on."""
    before, number = _START, 0
    rows = connection.execute(select(_AUDIT).order_by(_AUDIT.c.number)).mappings()
    for row in rows:
        entry = {key: row[key] for key in row if key != "digest"}
        digest = _digest(before, entry)
        if row["number"] != number + 1 or digest.hex() != row["digest"]:
            return Verified(number, before.hex(), broken=number + 1)
        before, number = digest, row["number"]
    return Verified(number, before.hex(), broken=None)


def _digest(before: bytes, entry: dict[str, Any]) -> bytes:
    return hashlib.sha256(before + rfc8785.dumps(entry)).digest()
