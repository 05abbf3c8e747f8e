"""Events: what people and programs are told of, in the transaction in which it happens."""

from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, insert, select

from cima_runc.fleet import clock
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
    RECORDS_GONE = "records.gone"
    """Records that no host holds any more."""


def tell(
    connection: Connection,
    kind: Kind,
    data: dict[str, Any],
    *,
    host: int | None = None,
    container: int | None = None,
    now: int | None = None,
) -> None:
    """Write down an event, and that it is to reach the webhooks that want it.

    A tenant's webhooks get what is about a container with one of the tenant's keys.
    """
    time = clock.now() if now is None else now
    made = connection.execute(
        insert(table_of(Event)).values(
            uid=new_uid(), time=time, kind=kind.value, host=host, container=container, data=data
        )
    ).inserted_primary_key
    assert made is not None
    hook = table_of(Webhook).c
    hooks = connection.execute(
        select(hook.id, hook.tenant, hook.kinds).where(hook.removed.is_(None))
    ).all()
    wanted = [one for one in hooks if not one.kinds or kind.value in one.kinds]
    if any(one.tenant is not None for one in wanted):
        tenants = tenants_of(connection, container) if container is not None else set()
        wanted = [one for one in wanted if one.tenant is None or one.tenant in tenants]
    if wanted:
        connection.execute(
            insert(table_of(Delivery)),
            [{"webhook": one.id, "event": made[0], "attempts": 0, "due": time} for one in wanted],
        )


def tenants_of(connection: Connection, container: int) -> set[int]:
    """Return the tenants one of whose keys the container names."""
    owner, key = table_of(Owner).c, table_of(TenantKey).c
    found = connection.execute(
        select(key.tenant).where(key.key == owner.key, owner.container == container)
    )
    return set(found.scalars())
