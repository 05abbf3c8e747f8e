"""Hosts' logs as their reports prove them, entry by entry, and what they say.

What the host services run is looked up here, as ``cima verify`` looks it up in the log that
evidence shows. A report's new entries are one row, so that a host costs what is new of its log.
Source: design, section 7 (what PCR 10 decides).
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import zstandard
from sqlalchemy import Connection, and_, delete, func, insert, select
from sqlalchemy.sql.elements import ColumnElement

from cima_runc.base import limits
from cima_runc.evidence.models import HostLine
from cima_runc.fleet.schema import HostLogPart, table_of
from cima_runc.verifier.host_log import extended_with
from cima_runc.verifier.kernel_line import HostFile, read_line
from cima_runc.verifier.steps.explained import Aggregate, aggregate

_PART = table_of(HostLogPart)
VIOLATED = 500
"""Paths of violations that are kept; where there are more, any file may be one."""

Shown = HostLine | None
"""An entry that is shown; None: its hash alone."""


def facts(
    before: Mapping[str, Any], entries: Sequence[bytes | HostLine], *, is_first: bool
) -> dict[str, Any]:
    """Return what a log says with ``entries`` after those that gave ``before``.

    ``is_first``: there are none before. ``first`` is the data of its first entry, hexadecimal;
    ``disclosure``, ``violations`` and ``violated`` are as in
    :class:`cima_runc.verifier.steps.explained.HostLog`.
    """
    found = {} if is_first else {key: value for key, value in before.items() if key != "hidden"}
    if is_first and entries:
        first = entries[0]
        is_line = isinstance(first, HostLine) and not first.violation
        found["first"] = first.data.hex() if is_line else ""  # type: ignore[union-attr]
        found["disclosure"] = "full"
    violated, count = set(found.get("violated", ())), found.get("violations", 0)
    for entry in entries:
        if not isinstance(entry, HostLine):
            count += entry == b"\xff" * 32
            found["disclosure"] = "redacted"
        elif entry.violation:
            count += 1
            said = read_line(entry.data)
            path = said.path if said is not None else b""
            # What there is no room for may be a service's, as what has no name may.
            violated.add(path.hex() if len(violated) < VIOLATED else "")
    found["violations"], found["violated"] = count, sorted(violated)
    return found


def begins(said: Mapping[str, Any], values: Mapping[int, bytes]) -> Aggregate:
    """Return how a log's first line stands to the PCRs as they are quoted now."""
    found = read_line(bytes.fromhex(said.get("first", "")))
    return "another" if found is None else aggregate(found, values)


def keep(
    connection: Connection,
    host: int,
    boot_id: str,
    first: int,
    entries: Sequence[bytes | HostLine],
) -> int:
    """Write entries that follow on ``first`` others; those before are gone where there are none.
    Returns how many bytes more are kept of the host."""
    grown = 0 if first else -forget(connection, host, (boot_id,))
    kept = entries[: max(0, limits.FLEET_LOG - first)]
    if kept:
        shown = _packed(first, kept)
        if shown is not None:
            before = connection.execute(
                select(func.sum(func.length(_PART.c.shown))).where(_is_of(host, boot_id))
            ).scalar()
            if (before or 0) + len(shown) > limits.FLEET_LOG_SHOWN:
                shown = None
        digests = b"".join(map(extended_with, kept))
        connection.execute(
            insert(_PART).values(
                host=host, boot_id=boot_id, first=first, digests=digests, shown=shown
            )
        )
        grown += len(digests) + len(shown or b"")
    return grown


def proved(connection: Connection, host: int, boot_id: str) -> frozenset[bytes]:
    """Return what the host's PCR was extended with in a boot, as far as it is kept."""
    rows = connection.execute(select(_PART.c.digests).where(_is_of(host, boot_id))).scalars()
    return frozenset(raw[at : at + 32] for raw in rows for at in range(0, len(raw), 32))


def files(connection: Connection, host: int, boot_id: str) -> list[HostFile | None]:
    """Return what the entries of a boot say, in order and without violations; None for one that
    cannot be read, or of which the hash alone was shown."""
    rows = connection.execute(
        select(_PART.c.digests, _PART.c.shown).where(_is_of(host, boot_id)).order_by(_PART.c.first)
    ).all()
    return [
        read_line(entry.data) if entry is not None else None
        for row in rows
        for entry in _unpacked(row.shown, len(row.digests) // 32)
        if entry is None or not entry.violation
    ]


def forget(connection: Connection, host: int, boots: Iterable[str]) -> int:
    """Remove the entries of boots; return how many bytes they were."""
    size = func.length(_PART.c.digests) + func.coalesce(func.length(_PART.c.shown), 0)
    freed = 0
    for boot_id in boots:
        gone = connection.execute(delete(_PART).where(_is_of(host, boot_id)).returning(size))
        freed += sum(gone.scalars())
    return freed


def _is_of(host: int, boot_id: str) -> ColumnElement[bool]:
    return and_(_PART.c.host == host, _PART.c.boot_id == boot_id)


def _packed(first: int, entries: Sequence[bytes | HostLine]) -> bytes | None:
    shown = [
        [entry.data.hex(), entry.violation] if isinstance(entry, HostLine) else None
        for entry in entries
    ]
    # The log's first line is shown always; it is kept with what the log says.
    if not any(shown if first else shown[1:]):
        return None
    return zstandard.ZstdCompressor(level=3).compress(json.dumps(shown).encode("ascii"))


def _unpacked(raw: bytes | None, count: int) -> list[Shown]:
    if raw is None:
        return [None] * count
    shown = json.loads(zstandard.ZstdDecompressor().decompress(raw))
    return [
        None if one is None else HostLine(template="", data=bytes.fromhex(one[0]), violation=one[1])
        for one in shown
    ]
