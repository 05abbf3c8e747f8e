"""Events: what people and programs are told of, in the transaction in which it happens."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, insert, select

from cima_runc.fleet import clock
from cima_runc.fleet.database import batched
from cima_runc.fleet.schema import (
    Delivery,
    Event,
    Owner,
    TenantKey,
    Webhook,
    new_uid,
    table_of,
)


class Kind(StrEnum):
    """What happened."""

    VERDICT = "container.verdict"
    """A container's verdict is another."""
    VANISHED = "container.vanished"
    """A container's slot became empty before its end was proved."""
    CONTAINER_STALE = "container.stale"
    """The deadline of a tenant's container has passed."""
    CONTAINER_FRESH = "container.fresh"
    """It is proved again."""
    HOST_ENROLLED = "host.enrolled"
    HOST_STALE = "host.stale"
    """No report proves anything of this host any more."""
    HOST_FRESH = "host.fresh"
    """It reports again."""
    HOST_REFUSED = "host.refused"
    """A report was refused, for a reason that the one before was not refused for."""
    HOST_BOOTED = "host.booted"
    HOST_NOTICE = "host.notice"
    """A report shows something of the host: hibernation, a foreign extend."""
    ENROLMENT_WAITING = "enrolment.waiting"
    """A person has to decide."""
    ISSUED = "token.issued"
    """Somebody was given a token for a container."""
    RECORDS_GONE = "records.gone"
    """After a restore: a container has no end, and its host tells of it no more. What came since
    the copy was made is with nobody."""


@dataclass(frozen=True)
class Told:
    """An event that is to be written down."""

    kind: Kind
    data: dict[str, Any]
    host: int | None = None
    container: int | None = None


def tell(
    connection: Connection,
    kind: Kind,
    data: dict[str, Any],
    *,
    host: int | None = None,
    container: int | None = None,
    now: int | None = None,
) -> None:
    """Write down an event, as :func:`tell_all` does with many."""
    tell_all(connection, [Told(kind, data, host, container)], now)


def tell_all(connection: Connection, told: Sequence[Told], now: int | None = None) -> None:
    """Write down events, and that they are to reach the webhooks that want them.

    A tenant's webhooks get what is about a container with one of the tenant's keys.
    """
    if not told:
        return
    time, event = clock.now() if now is None else now, table_of(Event)
    numbers = connection.execute(
        insert(event).returning(event.c.id, sort_by_parameter_order=True),
        [
            {
                "uid": new_uid(),
                "time": time,
                "kind": one.kind.value,
                "host": one.host,
                "container": one.container,
                "data": one.data,
            }
            for one in told
        ],
    ).scalars()
    hook = table_of(Webhook).c
    hooks = connection.execute(
        select(hook.id, hook.tenant, hook.kinds).where(hook.removed.is_(None))
    ).all()
    tenants: dict[int, set[int]] = {}
    if any(one.tenant is not None for one in hooks):
        tenants = tenants_of(connection, {one.container for one in told} - {None})
    rows = [
        {"webhook": to.id, "event": number, "attempts": 0, "due": time}
        for number, one in zip(numbers, told, strict=True)
        for to in hooks
        if not to.kinds or one.kind.value in to.kinds
        if to.tenant is None or to.tenant in tenants.get(one.container or 0, ())
    ]
    if rows:
        connection.execute(insert(table_of(Delivery)), rows)


def tenants_of(connection: Connection, containers: Iterable[int | None]) -> dict[int, set[int]]:
    """Return the tenants of containers, those one of whose keys a container names."""
    owner, key = table_of(Owner).c, table_of(TenantKey).c
    found: dict[int, set[int]] = {}
    for some in batched(sorted(one for one in containers if one is not None)):
        rows = connection.execute(
            select(owner.container, key.tenant)
            .where(key.key == owner.key, owner.container.in_(some))
            .distinct()
        )
        for container, tenant in rows:
            found.setdefault(container, set()).add(tenant)
    return found
