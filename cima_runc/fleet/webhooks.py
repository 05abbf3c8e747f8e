"""The outbox: events on their way to webhooks, at least once, each signed.

The body is a CloudEvent in structured JSON (CloudEvents 1.0). The headers ``webhook-id``,
``webhook-timestamp`` and ``webhook-signature`` are those of Standard Webhooks 1.0: ``v1,`` and the
base64 of HMAC-SHA256(secret, id || "." || timestamp || "." || body).

A receiver's address is looked up once for each attempt and must be public, and that very address is
connected to; redirects are not followed: a webhook reaches nothing inside the operator's network
that the settings do not allow.
"""

import base64
import hashlib
import hmac
import http.client
import ipaddress
import json
import logging
import secrets
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import SplitResult, urlsplit

from sqlalchemy import Connection, func, select, update

from cima_runc.base.errors import CimaError
from cima_runc.base.peer import PeerConnection, whole_within
from cima_runc.base.text import printable
from cima_runc.fleet import clock
from cima_runc.fleet.database import Database, DatabaseError
from cima_runc.fleet.schema import (
    Container,
    Delivery,
    Event,
    Host,
    Webhook,
    table_of,
)
from cima_runc.fleet.settings import Settings

_log = logging.getLogger(__name__)
_PREFIX = "whsec_"
_SECRET_BYTES = 32
_SECONDS = 10.0
"""How long a receiver may take."""
_LEASE = 60_000
"""Milliseconds after which a delivery that was begun, and not ended, is anybody's again."""
_IN_A_ROW = 16
"""Deliveries that one receiver gets before others have their turn."""
_TURN_SECONDS = 30.0
"""How long a turn goes on: what was taken for it stays its own for :data:`_LEASE`."""
_LANES, _LANES_EACH = 16, 4
"""Receivers that are sent to at a time, and those of one tenant: one that is slow delays nobody
else's."""
_FIRST_WAIT, _LONGEST_WAIT = 1_000, 3_600_000
_ATTEMPTS = 48
"""About a day and a half; after that a person has to look."""
_URL = 2_048
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
"""All that is given out of IPv6 (RFC 4291, 2.4): beside it are addresses of sites, of NAT64, and of
IPv4 in other dress, some of which Python calls global."""
_OF_AZURE = ipaddress.ip_address("168.63.129.16")
"""A machine's own host, under a public address (Azure's WireServer)."""


class WebhookError(CimaError):
    """A webhook's address cannot be used."""


class _AwayError(CimaError):
    """The receiver was not reached, or did not answer: what else is for it waits with this."""


@dataclass(frozen=True)
class Private:
    """Whose webhooks may go to addresses that are not public."""

    operator: bool
    tenants: bool

    @classmethod
    def by(cls, settings: Settings) -> "Private":
        """Return what the settings say."""
        return cls(settings.allow_private_webhooks, settings.allow_private_tenant_webhooks)

    def of(self, tenant: int | None) -> bool:
        """Whether those of a tenant may; None: the operator's."""
        return self.operator if tenant is None else self.tenants


@dataclass(frozen=True)
class _Parcel:
    delivery: int
    webhook: int
    tenant: int | None
    attempts: int
    url: str
    secret: str
    id: str
    body: bytes


def new_secret() -> str:
    """Return a secret to sign with, as Standard Webhooks writes it."""
    return _PREFIX + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode("ascii")


def check_url(url: str, *, allow_private: bool) -> SplitResult:
    """Read a webhook's address.

    Raises:
        WebhookError: not an https address, or one with a user name in it.
    """
    schemes = {"https", "http"} if allow_private else {"https"}
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise WebhookError("a webhook's address cannot be read") from error
    is_clean = len(url) <= _URL and url.isascii() and url.isprintable() and " " not in url
    if not is_clean or parts.scheme not in schemes or not parts.hostname or port == 0:
        raise WebhookError("a webhook's address is not one of https", hint="https://host/path")
    if parts.username is not None or parts.password is not None:
        raise WebhookError("a webhook's address holds a user name or a password")
    return parts


def sign(secret: str, id_: str, timestamp: int, body: bytes) -> str:
    """Return the value of ``webhook-signature``."""
    key = base64.b64decode(secret.removeprefix(_PREFIX))
    signed = f"{id_}.{timestamp}.".encode("ascii") + body
    return "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode("ascii")


class Outbox:
    """Sends what is due, to each receiver one after the other, to several at a time.

    Any number of processes may do this at a time: each takes other deliveries.
    """

    def __init__(self, database: Database, source: str, private: Private) -> None:
        """``source`` is the service's own address, as CloudEvents name it."""
        self._database = database
        self._source = source
        self._private = private
        self._lanes = ThreadPoolExecutor(_LANES, "webhook")
        self._lock = threading.Lock()
        self._busy: dict[int, int | None] = {}
        """Webhooks that are sent to now, and whose they are."""
        self._stopping = False

    def begin_due(self) -> int:
        """Begin to send what is due, to receivers for which there is room; return how much.

        Raises:
            DatabaseError: the database is away.
        """
        with self._lock:
            busy = dict(self._busy)
        with self._database.write() as connection:
            parcels = _take(connection, self._source, busy)
        turns: dict[int, list[_Parcel]] = {}
        for parcel in parcels:
            turns.setdefault(parcel.webhook, []).append(parcel)
        for webhook, turn in turns.items():
            with self._lock:
                self._busy[webhook] = turn[0].tenant
            self._lanes.submit(self._send_turn, webhook, turn)
        return len(parcels)

    def close(self) -> None:
        """Wait until what was begun is sent."""
        self._lanes.shutdown(wait=True)

    def stop(self) -> None:
        """End after what is being sent; the rest is due."""
        self._stopping = True
        self.close()

    def _send_turn(self, webhook: int, turn: Sequence[_Parcel]) -> None:
        try:
            self._send_in_order(turn)
        except DatabaseError as error:
            _log.warning("what was sent is sent again: %s", error)
        except Exception:
            _log.exception("sending to a webhook failed")
        finally:
            with self._lock:
                self._busy.pop(webhook, None)

    def _send_in_order(self, turn: Sequence[_Parcel]) -> None:
        until = time.monotonic() + _TURN_SECONDS
        for at, parcel in enumerate(turn):
            is_away, error = False, None
            try:
                error = _send(parcel, allow_private=self._private.of(parcel.tenant))
            except _AwayError as away:
                is_away, error = True, away.what
            is_over = is_away or self._stopping or time.monotonic() > until
            with self._database.write() as connection:
                _note(connection, parcel, error)
                if is_over:
                    _put_back(connection, turn[at + 1 :], is_away=is_away)
            if is_over:
                return


def _take(
    connection: Connection, source: str, busy: Mapping[int, int | None] | None = None
) -> list[_Parcel]:
    """Take what is due for receivers that are not ``busy``, some for each."""
    row, now = table_of(Delivery).c, clock.now()
    taken: list[int] = []
    for webhook in _next_receivers(connection, busy or {}, now):
        found = connection.execute(
            select(row.id)
            .where(row.webhook == webhook, row.due <= now)
            .order_by(row.due, row.id)
            .limit(_IN_A_ROW)
            .with_for_update(skip_locked=True)
        ).scalars()
        taken += found
    if not taken:
        return []
    connection.execute(
        update(table_of(Delivery))
        .where(row.id.in_(taken))
        .values(due=now + _LEASE, attempts=row.attempts + 1)
    )
    return _parcels(connection, taken, source)


def _next_receivers(connection: Connection, busy: Mapping[int, int | None], now: int) -> list[int]:
    """Return the webhooks that have waited longest, as many as there is room for."""
    row, hook = table_of(Delivery).c, table_of(Webhook).c
    rows = connection.execute(
        select(row.webhook, hook.tenant)
        .join(table_of(Webhook), hook.id == row.webhook)
        .where(row.due <= now)
        .group_by(row.webhook, hook.tenant)
        .order_by(func.min(row.due))
    ).all()
    found: list[int] = []
    each = Counter(tenant for tenant in busy.values() if tenant is not None)
    for webhook, tenant in rows:
        if len(busy) + len(found) >= _LANES:
            break
        if webhook in busy or (tenant is not None and each[tenant] >= _LANES_EACH):
            continue
        each[tenant] += 1
        found.append(webhook)
    return found


def _parcels(connection: Connection, taken: Sequence[int], source: str) -> list[_Parcel]:
    row, hook, event = table_of(Delivery).c, table_of(Webhook).c, table_of(Event).c
    rows = connection.execute(
        select(
            row.id,
            row.webhook,
            row.attempts,
            hook.tenant,
            hook.url,
            hook.secret,
            hook.removed,
            event.uid,
            event.time,
            event.kind,
            event.data,
            Host.ak_name,
            Container.uid.label("container_uid"),
        )
        .select_from(table_of(Delivery))
        .join(table_of(Webhook), hook.id == row.webhook)
        .join(table_of(Event), event.id == row.event)
        .outerjoin(Host, Host.id == event.host)
        .outerjoin(Container, Container.id == event.container)
        .where(row.id.in_(taken))
        .order_by(row.id)
    ).all()
    parcels = []
    for one in rows:
        if one.removed is not None:
            connection.execute(
                update(table_of(Delivery))
                .where(row.id == one.id)
                .values(due=None, error="the webhook was removed")
            )
            continue
        body = json.dumps(cloud_event(one, source)).encode("ascii")
        parcels.append(
            _Parcel(
                delivery=one.id,
                webhook=one.webhook,
                tenant=one.tenant,
                attempts=one.attempts,
                url=one.url,
                secret=one.secret,
                id=one.uid,
                body=body,
            )
        )
    return parcels


def cloud_event(event: Any, source: str) -> dict[str, Any]:
    """Return an event as a CloudEvent."""
    subject = "/".join(part for part in (event.ak_name, event.container_uid) if part is not None)
    made = {
        "specversion": "1.0",
        "id": event.uid,
        "source": source,
        "type": f"io.cima.{event.kind}",
        "time": datetime.fromtimestamp(event.time / 1000, UTC).isoformat().replace("+00:00", "Z"),
        "datacontenttype": "application/json",
        "data": event.data,
    }
    return made | {"subject": subject} if subject else made


def _note(connection: Connection, parcel: _Parcel, error: str | None) -> None:
    now = clock.now()
    values: dict[str, Any] = {"due": None, "delivered": now, "error": ""}
    if error is not None:
        wait = min(_FIRST_WAIT << min(parcel.attempts, 20), _LONGEST_WAIT)
        wait += secrets.randbelow(wait // 4 + 1)
        due = now + wait if parcel.attempts < _ATTEMPTS else None
        values = {"due": due, "error": error[:300]}
    connection.execute(
        update(table_of(Delivery))
        .where(table_of(Delivery).c.id == parcel.delivery)
        .values(**values)
    )


def _put_back(connection: Connection, parcels: Sequence[_Parcel], *, is_away: bool) -> None:
    """Leave parcels that were taken and not tried for a later turn."""
    row = table_of(Delivery).c
    due = clock.now() + (_FIRST_WAIT * _IN_A_ROW if is_away else 0)
    connection.execute(
        update(table_of(Delivery))
        .where(row.id.in_([one.delivery for one in parcels]))
        .values(due=due, attempts=row.attempts - 1)
    )


def _send(parcel: _Parcel, *, allow_private: bool) -> str | None:
    """Send once; return what went wrong, None where the receiver has taken it.

    Raises:
        _AwayError: it was not reached, or did not answer in time.
    """
    timestamp = int(time.time())
    headers = {
        "Content-Type": "application/cloudevents+json",
        "User-Agent": "cima-verifier",
        "webhook-id": parcel.id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": sign(parcel.secret, parcel.id, timestamp, parcel.body),
    }
    try:
        parts = check_url(parcel.url, allow_private=allow_private)
        connection = _Pinned(parts, allow_private=allow_private)
        try:
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            with whole_within(connection, _SECONDS):
                connection.request("POST", target, parcel.body, headers)
                status = connection.getresponse().status
        finally:
            connection.close()
    except (OSError, http.client.HTTPException, CimaError, ValueError) as error:
        raise _AwayError(printable(str(error) or type(error).__name__)) from error
    return None if 200 <= status < 300 else f"the receiver answers with status {status}"


class _Pinned(PeerConnection):
    """A connection to the address that was looked at, and no other."""

    def __init__(self, parts: SplitResult, *, allow_private: bool) -> None:
        assert parts.hostname is not None
        context = ssl.create_default_context() if parts.scheme == "https" else None
        self._allow_private = allow_private
        super().__init__(parts.hostname, parts.port, _SECONDS, context)

    def address(self) -> tuple[str, int]:
        found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        for *_, address in found:
            if not self._allow_private and not _is_public(str(address[0])):
                raise WebhookError(f"{self.host} leads to an address that is not public")
        host, port = found[0][4][:2]
        return str(host), int(port)


def _is_public(address: str) -> bool:
    try:
        value = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(value, "ipv4_mapped", None) or getattr(value, "sixtofour", None)
    if mapped is not None:
        value = mapped
    if value.version == 6 and value not in _GLOBAL_UNICAST:
        return False
    return value.is_global and not value.is_multicast and value != _OF_AZURE
