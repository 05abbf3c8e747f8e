"""Requests of tenants that the service passes on to hosts, and the answers on their way back.

The service reads neither: a request is the tenant's own, with the tenant's nonce, and the answer is
evidence for it. The service can withhold or delay, not change or replay. Source: fleet, sections 2
and 4.
"""

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, and_, delete, insert, or_, select, update
from sqlalchemy.sql.elements import ColumnElement

from cima_runc.base import limits
from cima_runc.base.errors import CimaError
from cima_runc.evidence.enrolment import Challenge, parse
from cima_runc.evidence.report_answer import TenantChallenge, TenantRequest
from cima_runc.evidence.request import parse_request
from cima_runc.fleet import clock, verdicts
from cima_runc.fleet.database import batched
from cima_runc.fleet.schema import (
    Container,
    EvidenceRequest,
    Host,
    new_uid,
    table_of,
)

_REQUEST, _HOST, _CONTAINER = table_of(EvidenceRequest), table_of(Host), table_of(Container)
WAIT = 100_000
"""Milliseconds that a request waits for its answer."""
_AGAIN = 20_000
"""Milliseconds after which a request that the host was handed, and did not answer, is handed to it
again: the answer that held it may have been lost."""


class NotHereError(CimaError):
    """There is no such container, or it may be one of several hosts'."""


class NotAnsweredError(CimaError):
    """The host did not answer in time."""


class BusyError(CimaError):
    """Too many requests wait for one host or of one source."""


def host_of(connection: Connection, container: str) -> int:
    """Return the host that has a container of this id now.

    An id is what a host says: any of them may list another's, and then nobody is answered by the id
    alone. Who asks by the host is, whatever others list.

    Raises:
        NotHereError: none, or more than one.
    """
    has_it = (
        select(_CONTAINER.c.host)
        .join(_HOST, _HOST.c.id == _CONTAINER.c.host)
        .where(
            _CONTAINER.c.name == container,
            _CONTAINER.c.kind == "container",
            _CONTAINER.c.slot.is_not(None),
            _CONTAINER.c.boot_id == _HOST.c.boot_id,
            _HOST.c.state == "enrolled",
        )
        .distinct()
        .limit(2)
    )
    # A host that does not report had it, and may have it no more: it does not answer either.
    reports = has_it.where(~verdicts.is_late(clock.now()))
    found = (
        connection.execute(reports).scalars().all() or connection.execute(has_it).scalars().all()
    )
    if len(found) == 1:
        return int(found[0])
    # Anybody may ask: which of both it is says what runs on hosts that are not his.
    raise NotHereError(
        "no host, or more than one, has a container of this id",
        hint="ask by the host: --url .../hosts/<its attestation key's name>",
    )


def host_named(connection: Connection, ak_name: str) -> int:
    """Return the number of an enrolled host.

    Raises:
        NotHereError: there is none.
    """
    found = connection.execute(
        select(_HOST.c.id).where(_HOST.c.ak_name == ak_name, _HOST.c.state == "enrolled")
    ).scalar()
    if found is None:
        raise NotHereError("there is no such host", hint="ask its operator for its key's name")
    return int(found)


def ask(connection: Connection, host: int, kind: str, body: bytes, source: str) -> str:
    """Put a request down for a host; return its name.

    Raises:
        BusyError: too many wait already.
    """
    now = clock.now()
    forget(connection, now)
    _make_room(connection, host, source, now)
    uid = new_uid()
    connection.execute(
        insert(_REQUEST).values(
            uid=uid,
            host=host,
            kind=kind,
            source=source,
            body=body,
            created=now,
            expires=now + WAIT,
        )
    )
    return uid


def _make_room(connection: Connection, host: int, source: str, now: int) -> None:
    """See that one more request of a source may wait for a host; where there is no room, the latest
    of the source that has the most gives its place to one that has fewer.

    Raises:
        BusyError: nobody has more.
    """
    rows = connection.execute(
        select(_REQUEST.c.id, _REQUEST.c.source)
        .where(_REQUEST.c.host == host, _REQUEST.c.answered.is_(None), _REQUEST.c.expires > now)
        .order_by(_REQUEST.c.id.desc())
    ).all()
    waiting = Counter(row.source for row in rows)
    busy = BusyError("too many requests wait for this host", hint="ask again in a moment")
    if waiting[source] >= limits.WAITING_FROM_ONE_SOURCE:
        raise busy
    if len(rows) < limits.TENANTS_REQUESTS:
        return
    most = max(waiting.values())
    if most <= waiting[source] + 1:
        raise busy
    latest = next(row.id for row in rows if waiting[row.source] == most)
    told = error_body(busy.what, busy.hint)
    connection.execute(
        update(_REQUEST)
        .where(_REQUEST.c.id == latest)
        .values(answered=now, status=429, answer=told)
    )


def forget(connection: Connection, now: int) -> None:
    """Remove requests that nobody waits for any more, and their answers."""
    connection.execute(delete(_REQUEST).where(_REQUEST.c.expires < now - WAIT))


def take(
    connection: Connection, ak_name: str
) -> tuple[tuple[TenantRequest, ...], tuple[TenantChallenge, ...]]:
    """Return what waits for a host, and note that it was handed over."""
    now = clock.now()
    rows = connection.execute(
        select(_REQUEST.c.id, _REQUEST.c.uid, _REQUEST.c.kind, _REQUEST.c.body)
        .join(_HOST, _HOST.c.id == _REQUEST.c.host)
        .where(
            _HOST.c.ak_name == ak_name,
            _HOST.c.state == "enrolled",
            _REQUEST.c.answered.is_(None),
            _REQUEST.c.expires > now,
            or_(_REQUEST.c.taken.is_(None), _REQUEST.c.taken < now - _AGAIN),
        )
        .order_by(_REQUEST.c.id)
        .limit(limits.TENANTS_REQUESTS)
    ).all()
    if not rows:
        return (), ()
    connection.execute(
        update(_REQUEST).where(_REQUEST.c.id.in_([row.id for row in rows])).values(taken=now)
    )
    requests = tuple(
        TenantRequest(id=row.uid, request=parse_request(row.body))
        for row in rows
        if row.kind == "evidence"
    )
    challenges = []
    for row in rows:
        if row.kind == "activate":
            asked = parse(Challenge, row.body, "the challenge")
            challenges.append(
                TenantChallenge(
                    id=row.uid,
                    credential=asked.credential,
                    encrypted_secret=asked.encrypted_secret,
                )
            )
    return requests, tuple(challenges)


def hosts_waited_for(connection: Connection) -> set[str]:
    """Return the names of the hosts that something waits for and was not handed over yet."""
    rows = connection.execute(
        select(_HOST.c.ak_name)
        .join(_REQUEST, _REQUEST.c.host == _HOST.c.id)
        .where(
            _HOST.c.state == "enrolled",
            _REQUEST.c.taken.is_(None),
            _REQUEST.c.answered.is_(None),
            _REQUEST.c.expires > clock.now(),
        )
        .distinct()
    )
    return set(rows.scalars())


def is_wanted(connection: Connection, ak_name: str, uid: str) -> bool:
    """Whether somebody waits for this answer of this host."""
    found = connection.execute(select(_REQUEST.c.id).where(_is_waiting(ak_name, uid)))
    return found.first() is not None


def answer(connection: Connection, ak_name: str, uid: str, status: int, body: bytes) -> bool:
    """Take a host's answer; False where nobody waits for it any more."""
    done = connection.execute(
        update(_REQUEST)
        .where(_is_waiting(ak_name, uid))
        .values(answered=clock.now(), status=status, answer=body)
    )
    return bool(done.rowcount)


def _is_waiting(ak_name: str, uid: str) -> ColumnElement[bool]:
    # The session of a host that was removed is good for a day.
    is_host = (_HOST.c.ak_name == ak_name) & (_HOST.c.state == "enrolled")
    host = select(_HOST.c.id).where(is_host).scalar_subquery()
    return and_(
        _REQUEST.c.uid == uid,
        _REQUEST.c.host == host,
        _REQUEST.c.answered.is_(None),
        _REQUEST.c.expires > clock.now(),
    )


def collect(connection: Connection, uid: str) -> tuple[int, bytes] | None:
    """Return a request's answer once, as (status, body); None: it is not there yet."""
    row = connection.execute(
        select(_REQUEST.c.id, _REQUEST.c.status, _REQUEST.c.answer).where(
            _REQUEST.c.uid == uid, _REQUEST.c.answered.is_not(None)
        )
    ).first()
    if row is None:
        return None
    connection.execute(delete(_REQUEST).where(_REQUEST.c.id == row.id))
    return row.status, row.answer


def error_body(what: str, hint: str = "") -> bytes:
    """Return an error as the agent's HTTPS endpoint writes it."""
    body: dict[str, Any] = {"error": what, "hint": hint}
    return json.dumps(body).encode("ascii")


def answered(connection: Connection, uids: Sequence[str]) -> set[str]:
    """Return those of these requests whose answers are there."""
    found: set[str] = set()
    for some in batched(uids):
        is_there = _REQUEST.c.uid.in_(some) & _REQUEST.c.answered.is_not(None)
        found |= set(connection.execute(select(_REQUEST.c.uid).where(is_there)).scalars())
    return found


def keys_of(connection: Connection, ak_name: str) -> bytes:
    """Return what a host's TPM showed when it joined, as the agent gives it to verifiers.

    Raises:
        NotHereError: there is no such host.
    """
    found = connection.execute(
        select(_HOST.c.tpm).where(_HOST.c.ak_name == ak_name, _HOST.c.state == "enrolled")
    ).scalar()
    if found is None:
        raise NotHereError("there is no such host", hint="ask its operator for its key's name")
    return bytes(found)
