"""What persons changed, each entry chained to the one before by its digest.

digest = SHA256(digest before || JCS of number, time, actor, action, subject and detail); before the
first stand 32 zero bytes. Whoever keeps one digest elsewhere sees whether what led to it was
changed later.
"""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import rfc8785
from sqlalchemy import Connection, RowMapping, insert, select, text

from cima_runc.fleet import clock
from cima_runc.fleet.schema import Audit, table_of

_LOCK = 0x61756469
_START = bytes(32)
_HEX = re.compile("[0-9a-f]{64}")
_AT_ONCE = 1_000
"""Entries in memory while the chain is walked along."""
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
    """Walk along the chain, from its first entry on: the longer it is, the longer that takes."""
    query = select(_AUDIT).order_by(_AUDIT.c.number).execution_options(yield_per=_AT_ONCE)
    return _walk(connection.execute(query).mappings(), 0, _START.hex())


def verify_some(connection: Connection, *, before: int | None, limit: int) -> Verified:
    """Walk along the last entries of the chain, or the last of those before a number: whether they
    fit to each other, and the first of them to the one before it."""
    query = select(_AUDIT).order_by(_AUDIT.c.number.desc()).limit(limit + 1)
    if before is not None:
        query = query.where(_AUDIT.c.number < before)
    rows = list(connection.execute(query).mappings())[::-1]
    if len(rows) <= limit:
        return _walk(rows, 0, _START.hex())
    return _walk(rows[1:], rows[0]["number"], rows[0]["digest"])


def _walk(rows: Iterable[RowMapping], number: int, digest: str) -> Verified:
    """Walk along entries that follow on the one of this number and digest."""
    for row in rows:
        entry = {key: row[key] for key in row if key != "digest"}
        if not _HEX.fullmatch(digest):
            return Verified(number, digest, broken=number)
        found = _digest(bytes.fromhex(digest), entry).hex()
        if row["number"] != number + 1 or found != row["digest"]:
            return Verified(number, digest, broken=number + 1)
        number, digest = row["number"], found
    return Verified(number, digest, broken=None)


def _digest(before: bytes, entry: dict[str, Any]) -> bytes:
    return hashlib.sha256(before + rfc8785.dumps(entry)).digest()
