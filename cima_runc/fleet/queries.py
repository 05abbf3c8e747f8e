"""What people and programs are shown, as objects for JSON: one function for each view.

``tenant`` None is somebody who may see all; else nothing is shown but what is that tenant's: the
conditions here say so in either database, PostgreSQL's row-level security once more. What hosts and
containers call themselves is made printable. Source: fleet, sections 5, 8 and 9.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Select, and_, case, func, literal, not_, select
from sqlalchemy.sql.elements import ColumnElement

from cima_runc.base.errors import CimaError
from cima_runc.base.text import printable
from cima_runc.fleet import audit as chain
from cima_runc.fleet import clock, verdicts
from cima_runc.fleet.findings import OPERATORS, are_for_all
from cima_runc.fleet.schema import (
    ApiToken,
    Appraisal,
    Assignment,
    Audit,
    Container,
    Delivery,
    Enrolment,
    Event,
    Finding,
    Host,
    Job,
    JoinToken,
    Owner,
    Policy,
    Record,
    Reference,
    Tenant,
    TenantKey,
    TokenGrant,
    Verdict,
    Webhook,
    is_at_path,
    table_of,
)

_HOST, _CONTAINER, _OWNER = table_of(Host), table_of(Container), table_of(Owner)
_KEY, _RECORD, _FINDING = table_of(TenantKey), table_of(Record), table_of(Finding)
_EVENT, _VERDICT = table_of(Event), table_of(Verdict)
MOST = 1_000
"""Rows of one answer at most."""
_SHOWN = ["severity", "rule", "what", "record", "run", "path", "got", "expected", "next", "part"]
"""What is shown of a finding, beside its time."""
_FEW = 1_000
"""Containers that are named one by one in a query."""
_RANK = {"fail": 0, "warn": 1}
Row = dict[str, Any]


class NoSuchThingError(CimaError):
    """There is none of this name, or it is not for who asks to see."""


def when(milliseconds: int | None) -> str | None:
    """Return a time as people read it: RFC 3339, UTC."""
    if milliseconds is None:
        return None
    text = datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


def is_tenants(tenant: int | None) -> ColumnElement[bool]:
    """Return the condition that a row of ``container`` may be seen."""
    if tenant is None:
        return literal(True)
    return (
        select(_OWNER.c.container)
        .join(_KEY, _KEY.c.key == _OWNER.c.key)
        .where(_OWNER.c.container == _CONTAINER.c.id, _KEY.c.tenant == tenant)
        .exists()
    )


def _own(tenant: int) -> Select[tuple[int]]:
    """Return the query for the numbers of a tenant's containers, which begins with the keys."""
    return (
        select(_OWNER.c.container)
        .join(_KEY, _KEY.c.key == _OWNER.c.key)
        .where(_KEY.c.tenant == tenant)
    )


def _shown_verdict(
    now: int, verdict: ColumnElement[Any] = _CONTAINER.c.verdict
) -> ColumnElement[str]:
    return case((verdicts.is_stale(now, verdict), "STALE"), else_=verdict)


def overview(connection: Connection, tenant: int | None = None) -> Row:
    """Return how many containers have which verdict, and hosts which freshness."""
    now = clock.now()
    shown = _shown_verdict(now).label("shown")
    counts = connection.execute(
        select(shown, func.count())
        .select_from(_CONTAINER.join(_HOST, _HOST.c.id == _CONTAINER.c.host))
        .where(_is_present(), is_tenants(tenant))
        .group_by(shown)
    ).all()
    made: Row = {
        "containers": {"TRUSTED": 0, "UNTRUSTED": 0, "STALE": 0, "UNKNOWN": 0} | dict(counts),
        "time": when(now),
    }
    if tenant is None:
        fresh = case(
            (_HOST.c.deadline.is_(None), "never"), (verdicts.is_late(now), "stale"), else_="fresh"
        ).label("fresh")
        found = connection.execute(
            select(fresh, func.count()).where(_HOST.c.state == "enrolled").group_by(fresh)
        ).all()
        made["hosts"] = {"fresh": 0, "stale": 0, "never": 0} | dict(found)
        waiting = table_of(Enrolment)
        made["enrolments_waiting"] = connection.execute(
            select(func.count())
            .select_from(waiting)
            .where(waiting.c.state == "waiting", waiting.c.expires > now)
        ).scalar_one()
    return made


def _is_present() -> ColumnElement[bool]:
    """Containers whose register is in the table of its host, as it was last proved."""
    return and_(
        _CONTAINER.c.kind == "container",
        _CONTAINER.c.slot.is_not(None),
        _CONTAINER.c.boot_id == _HOST.c.boot_id,
        _HOST.c.state == "enrolled",
    )


# -- hosts ----------------------------------------------------------------------------------------


def hosts(
    connection: Connection,
    tenant: int | None = None,
    *,
    after: str | None = None,
    limit: int = 100,
    ak_name: str | None = None,
) -> list[Row]:
    """Return hosts, by their names' order; a tenant sees those that have a container of his, and
    of them only whose they are by key and how fresh."""
    query = select(_HOST).order_by(_HOST.c.ak_name).limit(_limit(limit))
    if after is not None:
        query = query.where(_HOST.c.ak_name > after)
    if ak_name is not None:
        query = query.where(_HOST.c.ak_name == ak_name)
    if tenant is not None:
        own = select(_CONTAINER.c.host).where(_CONTAINER.c.id.in_(_own(tenant)))
        query = query.where(_HOST.c.id.in_(own))
    now = clock.now()
    rows = connection.execute(query).mappings()
    return [_host(dict(row), now, whole=tenant is None) for row in rows]


def host(connection: Connection, ak_name: str, tenant: int | None = None) -> Row:
    """Return one host.

    Raises:
        NoSuchThingError: there is none.
    """
    found = hosts(connection, tenant, ak_name=ak_name, limit=1)
    if not found:
        raise NoSuchThingError("there is no such host", hint="cima fleet hosts")
    if tenant is None:
        now = clock.now()
        shown = _shown_verdict(now).label("shown")
        counts = connection.execute(
            select(shown, func.count())
            .select_from(_CONTAINER.join(_HOST, _HOST.c.id == _CONTAINER.c.host))
            .where(_HOST.c.ak_name == ak_name, _is_present())
            .group_by(shown)
        ).all()
        found[0]["containers"] = dict(counts)
    return found[0]


def _host(row: Mapping[str, Any], now: int, *, whole: bool) -> Row:
    fresh = verdicts.is_fresh(row, now)
    made: Row = {
        "ak_name": row["ak_name"],
        "state": row["state"],
        "freshness": "fresh" if fresh else "never" if row["deadline"] is None else "stale",
        "quoted": when(row["quoted"]),
        "deadline": when(row["deadline"]),
        "hardware": row["hardware"] or None,
        "hardware_proved": bool(row["hardware"]),
        "enrolled_by": "the operator",
    }
    if not whole:
        return made
    status = row["status"] or {}
    return made | {
        "name": printable(row["name"]),
        "labels": row["labels"],
        "enrolled": when(row["enrolled"]),
        "enrolled_by": row["enrolled_by"],
        "boot_id": row["boot_id"],
        "reset_count": row["reset_count"],
        "restart_count": row["restart_count"],
        "clock": row["clock"],
        "status": status or None,
        "log": {"lines": row["log_lines"], **_log_shown(row["log"] or {})},
        "pcrs": row["pcrs"],
        "stored": row["stored"],
        "refused": row["refused"] or None,
        "refused_at": when(row["refused_at"]) if row["refused"] else None,
    }


def _log_shown(log: Mapping[str, Any]) -> Row:
    violated = [printable(bytes.fromhex(path)) for path in log.get("violated", ())[:100]]
    return {**{key: log[key] for key in log if key != "violated"}, "violated": violated}


# -- containers -----------------------------------------------------------------------------------


def containers(
    connection: Connection,
    tenant: int | None = None,
    *,
    verdict: str | None = None,
    ak_name: str | None = None,
    name: str | None = None,
    image: str | None = None,
    namespace: str | None = None,
    everything: bool = False,
    after: str | None = None,
    limit: int = 100,
) -> list[Row]:
    """Return containers, in an order that ``after``, the last one's ``uid``, goes on from.

    Those that are gone or ended are left out, unless ``everything`` is asked for. ``name`` is the
    beginning of the container's id.
    """
    now = clock.now()
    query = _containers(now).where(is_tenants(tenant), _CONTAINER.c.kind == "container")
    if not everything:
        query = query.where(_is_present())
    if verdict is not None:
        query = query.where(_shown_verdict(now) == verdict)
    if ak_name is not None:
        query = query.where(_HOST.c.ak_name == ak_name)
    if name is not None:
        query = query.where(_CONTAINER.c.name.like(_beginning(name), escape="/"))
    if image is not None:
        query = query.where(_CONTAINER.c.image == image)
    if namespace is not None:
        query = query.where(_CONTAINER.c.namespace == namespace)
    if after is not None:
        query = query.where(_CONTAINER.c.uid > after)
    rows = connection.execute(query.order_by(_CONTAINER.c.uid).limit(_limit(limit))).mappings()
    return [_container(dict(row)) for row in rows]


def _containers(now: int) -> Select[Any]:
    return select(
        *_CONTAINER.c,
        _HOST.c.ak_name,
        _HOST.c.hardware,
        _HOST.c.quoted,
        _HOST.c.deadline,
        _HOST.c.boot_id.label("host_boot_id"),
        _HOST.c.log_lines.label("host_log_lines"),
        _HOST.c.state.label("host_state"),
        _shown_verdict(now).label("shown"),
        _shown_verdict(now, _CONTAINER.c.observed).label("shown_observed"),
    ).select_from(_CONTAINER.join(_HOST, _HOST.c.id == _CONTAINER.c.host))


def _container(row: Mapping[str, Any]) -> Row:
    is_here = row["slot"] is not None and row["boot_id"] == row["host_boot_id"]
    holds = row["boot_id"] == row["host_boot_id"] and row["host_state"] == "enrolled"
    not_proved = []
    if not row["hardware"]:
        not_proved.append("hardware not proved")
    if row["is_sealed"]:
        not_proved.append("its records: they are for its owner; its place and freshness are proved")
        not_proved.append("id, count and state: they are the host's word")
    elif row["boot_id"] != row["host_boot_id"] or not row["host_log_lines"]:
        not_proved.append(
            "the host services' files, beside the agent's word: the kernel's log is not shown"
        )
    return {
        "uid": row["uid"],
        "host": row["ak_name"],
        "container": printable(row["name"]),
        "registration": str(row["registration"]),
        "boot_id": row["boot_id"],
        "state": row["state"] if is_here or row["has_ended"] else "gone",
        "verdict": row["shown"],
        "since": when(row["since"]),
        "place": "proved" if row["place_proved"] else "not proved",
        "policy": row["policy"],
        "reference": row["reference"],
        "observed": row["shown_observed"],
        "observed_policy": row["observed_policy"],
        "image": row["image"],
        "namespace": _printable(row["namespace"]),
        "pod": _printable(row["pod"]),
        "line": row["line"],
        "run": row["run"],
        "records": row["count"],
        "proved": row["confirmed"],
        "ended": printable(row["end"]) if row["has_ended"] else None,
        "vanished": row["vanished"],
        "first_seen": when(row["first_seen"]),
        "quoted": when(row["quoted"]) if holds else None,
        "deadline": when(row["deadline"]) if holds else None,
        "not_proved": not_proved,
    }


def container(connection: Connection, uid: str, tenant: int | None = None) -> Row:
    """Return one container with its findings, its verdicts, and what else is known of it.

    Raises:
        NoSuchThingError: there is none.
    """
    row = _one(connection, uid, tenant)
    made, number = _container(row), row["id"]
    owned = select(_OWNER.c.key).where(_OWNER.c.container == number).order_by(_OWNER.c.number)
    if tenant is not None:
        owned = owned.join(_KEY, _KEY.c.key == _OWNER.c.key).where(_KEY.c.tenant == tenant)
    made["owners"] = list(connection.execute(owned).scalars())
    made["findings"], made["observed_findings"] = [], []
    for one in _findings(connection, number, tenant):
        shown = {key: one[key] for key in _SHOWN} | {"time": when(one["time"])}
        made["findings" if one["mode"] == "enforce" else "observed_findings"].append(shown)
    made["verdicts"] = [
        {
            "time": when(one["time"]),
            "verdict": one["verdict"],
            "before": one["before"],
            "policy": one["policy"],
            "reference": one["reference"],
            "why": one["why"],
        }
        for one in connection.execute(
            select(_VERDICT)
            .where(_VERDICT.c.container == number)
            .order_by(_VERDICT.c.id.desc())
            .limit(100)
        ).mappings()
    ]
    made["why"] = made["verdicts"][0]["why"] if made["verdicts"] else ""
    return made


def _findings(connection: Connection, container: int, tenant: int | None) -> list[Row]:
    """Return what was found of a container, what fails first; for a tenant without what the host's
    log says of others."""
    column = _FINDING.c
    is_its = column.container == container
    query = select(_FINDING).where(is_its)
    if tenant is not None:
        query = query.where(are_for_all())
    rank = case((column.severity == "fail", 0), (column.severity == "warn", 1), else_=2)
    rows = connection.execute(query.order_by(rank, column.id).limit(MOST)).mappings()
    found = [dict(row) for row in rows]
    if tenant is None:
        return found
    nothing = dict.fromkeys(_SHOWN, "") | {"record": None, "run": None}
    others = connection.execute(
        select(column.mode, column.severity, column.rule, column.part, func.max(column.time))
        .where(is_its, not_(are_for_all()))
        .group_by(column.mode, column.severity, column.rule, column.part)
        .order_by(column.rule)
    )
    said = [
        {**nothing, "mode": mode, "severity": severity, "rule": rule, "what": OPERATORS}
        | {"part": part, "time": time}
        for mode, severity, rule, part, time in others
    ]
    return sorted([*found, *said], key=lambda one: _RANK.get(one["severity"], 2))


def records(
    connection: Connection,
    uid: str,
    tenant: int | None = None,
    *,
    since: int = 0,
    limit: int = 100,
) -> list[Row]:
    """Return a container's proved records from one on, as they were sent.

    Raises:
        NoSuchThingError: there is no such container.
    """
    row = _one(connection, uid, tenant)
    rows = connection.execute(
        select(_RECORD.c.content, _RECORD.c.time)
        .where(_RECORD.c.container == row["id"], _RECORD.c.number >= since)
        .order_by(_RECORD.c.number)
        .limit(_limit(limit))
    )
    return [{"record": json.loads(one.content), "proved": when(one.time)} for one in rows]


def find(
    connection: Connection,
    tenant: int | None = None,
    *,
    digest: str | None = None,
    path: str | None = None,
    limit: int = 100,
) -> list[Row]:
    """Return where a file with this SHA-256 (hexadecimal), or at this path, ever ran.

    Raises:
        NoSuchThingError: neither is given, or the digest is not one.
    """
    conditions: list[ColumnElement[bool]] = []
    if digest:
        try:
            conditions.append(
                _RECORD.c.file_digest == bytes.fromhex(digest.removeprefix("sha256:"))
            )
        except ValueError as error:
            raise NoSuchThingError(
                "a digest is 64 hexadecimal digits", hint="sha256sum FILE"
            ) from error
    if path:
        conditions.append(is_at_path(path.encode("utf-8", "surrogateescape")))
    if not conditions:
        raise NoSuchThingError("nothing is looked for", hint="give a digest or a path")
    rows = connection.execute(
        select(
            _RECORD.c.number,
            _RECORD.c.file_digest,
            _RECORD.c.path,
            _RECORD.c.time,
            _CONTAINER.c.uid,
            _CONTAINER.c.name,
            _HOST.c.ak_name,
            _shown_verdict(clock.now()).label("shown"),
        )
        .select_from(
            _RECORD.join(_CONTAINER, _CONTAINER.c.id == _RECORD.c.container).join(
                _HOST, _HOST.c.id == _CONTAINER.c.host
            )
        )
        .where(*conditions, is_tenants(tenant))
        .order_by(_RECORD.c.container.desc(), _RECORD.c.number)
        .limit(_limit(limit))
    )
    return [
        {
            "container": printable(row.name),
            "uid": row.uid,
            "host": row.ak_name,
            "verdict": row.shown,
            "record": row.number,
            "digest": row.file_digest.hex(),
            "path": printable(row.path),
            "proved": when(row.time),
        }
        for row in rows
    ]


def _one(connection: Connection, uid: str, tenant: int | None) -> Mapping[str, Any]:
    row = (
        connection.execute(
            _containers(clock.now()).where(_CONTAINER.c.uid == uid, is_tenants(tenant))
        )
        .mappings()
        .first()
    )
    if row is None:
        raise NoSuchThingError("there is no such container", hint="cima fleet containers")
    return dict(row)


# -- what happened --------------------------------------------------------------------------------


def events(
    connection: Connection,
    tenant: int | None = None,
    *,
    kind: str | None = None,
    container: str | None = None,
    ak_name: str | None = None,
    before: str | None = None,
    limit: int = 100,
) -> list[Row]:
    """Return events, the latest first; ``before`` is the ``uid`` of the last one that was shown."""
    query = (
        select(
            _EVENT.c.uid,
            _EVENT.c.time,
            _EVENT.c.kind,
            _EVENT.c.data,
            _HOST.c.ak_name,
            _CONTAINER.c.uid.label("container"),
        )
        .select_from(
            _EVENT.outerjoin(_HOST, _HOST.c.id == _EVENT.c.host).outerjoin(
                _CONTAINER, _CONTAINER.c.id == _EVENT.c.container
            )
        )
        .order_by(_EVENT.c.id.desc())
        .limit(_limit(limit))
    )
    if tenant is not None:
        own = connection.execute(_own(tenant).limit(_FEW + 1)).scalars().all()
        # Of few containers their events are looked up; of many, among the latest there are enough.
        is_few = len(own) <= _FEW
        query = query.where(_EVENT.c.container.in_(own) if is_few else is_tenants(tenant))
    if kind is not None:
        query = query.where(_EVENT.c.kind == kind)
    if container is not None:
        query = query.where(_CONTAINER.c.uid == container)
    if ak_name is not None:
        query = query.where(_HOST.c.ak_name == ak_name)
    if before is not None:
        last = select(_EVENT.c.id).where(_EVENT.c.uid == before).scalar_subquery()
        query = query.where(_EVENT.c.id < last)
    return [
        {
            "uid": row.uid,
            "time": when(row.time),
            "kind": row.kind,
            "host": row.ak_name,
            "container": row.container,
            "data": row.data,
        }
        for row in connection.execute(query)
    ]


def audit(connection: Connection, *, before: int | None = None, limit: int = 100) -> list[Row]:
    """Return audit entries, the latest first."""
    table = table_of(Audit)
    query = select(table).order_by(table.c.number.desc()).limit(_limit(limit))
    if before is not None:
        query = query.where(table.c.number < before)
    rows = connection.execute(query).mappings()
    return [{**row, "time": when(row["time"])} for row in rows]


def audit_verified(connection: Connection) -> Row:
    """Return whether the chain of audit entries is whole."""
    return _chain(chain.verify(connection))


def audit_some_verified(connection: Connection, *, before: int | None, limit: int) -> Row:
    """Return whether the entries that :func:`audit` returns fit to each other: what that costs does
    not grow with the chain."""
    return _chain(chain.verify_some(connection, before=before, limit=_limit(limit)))


def _chain(found: chain.Verified) -> Row:
    return {"entries": found.entries, "head": found.head, "broken": found.broken}


# -- what people make -----------------------------------------------------------------------------


def policies(connection: Connection) -> list[Row]:
    """Return all versions of all policies, the latest first, with how many containers each is the
    policy of now."""
    table, appraised = table_of(Policy), table_of(Appraisal)
    found = connection.execute(
        select(appraised.c.policy, func.count())
        .where(appraised.c.mode == "enforce")
        .group_by(appraised.c.policy)
    )
    counts = {row[0]: row[1] for row in found}
    rows = connection.execute(
        select(table).order_by(table.c.name, table.c.version.desc()).limit(MOST)
    ).mappings()
    return [
        {
            "name": row["name"],
            "version": row["version"],
            "sha256": row["sha256"],
            "content": row["content"],
            "created": when(row["created"]),
            "created_by": row["created_by"],
            "containers": counts.get(f"{row['name']}@{row['version']}", 0),
        }
        for row in rows
    ]


def assignments(connection: Connection) -> list[Row]:
    """Return which containers which policy is for."""
    return _rows(connection, Assignment)


def references(connection: Connection) -> list[Row]:
    """Return all versions of all reference values, without their content."""
    return _rows(connection, Reference, without={"content"})


def enrolments(connection: Connection) -> list[Row]:
    """Return the hosts that wait for a person."""
    table = table_of(Enrolment)
    rows = connection.execute(
        select(table)
        .where(table.c.state == "waiting", table.c.expires > clock.now())
        .order_by(table.c.id)
        .limit(MOST)
    ).mappings()
    return [
        {
            "uid": row["uid"][:24],
            "ak_name": row["ak_name"],
            "ek_sha256": row["ek_digest"],
            "name": printable(row["name"]),
            "hardware": row["hardware"] or None,
            "reason": row["reason"],
            "created": when(row["created"]),
            "expires": when(row["expires"]),
        }
        for row in rows
    ]


def join_tokens(connection: Connection) -> list[Row]:
    """Return join tokens, without what lets a host join."""
    return _rows(connection, JoinToken, without={"digest"})


def tokens(connection: Connection) -> list[Row]:
    """Return people's and programs' tokens, without what they are recognised by."""
    names = dict(connection.execute(select(Tenant.id, Tenant.name)).all())
    rows = _rows(connection, ApiToken, without={"digest"})
    return [{**row, "tenant": names.get(row["tenant"])} for row in rows]


def token_grants(connection: Connection) -> list[Row]:
    """Return what tokens may be for."""
    names = dict(connection.execute(select(Tenant.id, Tenant.name)).all())
    rows = _rows(connection, TokenGrant)
    return [{**row, "tenant": names.get(row["tenant"])} for row in rows]


def tenants(connection: Connection) -> list[Row]:
    """Return tenants and their keys."""
    keys: dict[int, list[str]] = {}
    for number, key in connection.execute(select(_KEY.c.tenant, _KEY.c.key).order_by(_KEY.c.key)):
        keys.setdefault(number, []).append(key)
    rows = connection.execute(select(table_of(Tenant)).order_by(Tenant.name)).mappings()
    return [
        {"name": row["name"], "created": when(row["created"]), "keys": keys.get(row["id"], [])}
        for row in rows
    ]


def webhooks(connection: Connection, tenant: int | None = None) -> list[Row]:
    """Return webhooks, and how their deliveries stand; a tenant's own alone for a tenant."""
    hook, sent = table_of(Webhook), table_of(Delivery)
    query = select(hook).where(hook.c.removed.is_(None)).order_by(hook.c.id).limit(MOST)
    if tenant is not None:
        query = query.where(hook.c.tenant == tenant)
    made = []
    for row in connection.execute(query).mappings().all():
        counts = connection.execute(
            select(
                func.count().filter(sent.c.delivered.is_not(None)),
                func.count().filter(sent.c.due.is_not(None)),
                func.count().filter(sent.c.delivered.is_(None), sent.c.due.is_(None)),
            ).where(sent.c.webhook == row["id"])
        ).one()
        made.append(
            {
                "uid": row["uid"],
                "url": row["url"],
                "kinds": row["kinds"],
                "created": when(row["created"]),
                "delivered": counts[0],
                "waiting": counts[1],
                "given_up": counts[2],
            }
        )
    return made


def undelivered(connection: Connection, tenant: int | None = None) -> list[Row]:
    """Return what webhooks did not take yet, and why."""
    hook, sent = table_of(Webhook), table_of(Delivery)
    query = (
        select(
            _EVENT.c.uid.label("event"),
            _EVENT.c.kind,
            hook.c.uid.label("webhook"),
            sent.c.attempts,
            sent.c.due,
            sent.c.error,
        )
        .join(hook, hook.c.id == sent.c.webhook)
        .join(_EVENT, _EVENT.c.id == sent.c.event)
        .where(sent.c.delivered.is_(None), sent.c.attempts > 0)
        .order_by(sent.c.id.desc())
        .limit(MOST)
    )
    if tenant is not None:
        query = query.where(hook.c.tenant == tenant)
    rows = connection.execute(query).mappings()
    return [{**row, "due": when(row["due"])} for row in rows]


def backlog(connection: Connection) -> Row:
    """Return how much waits: jobs, deliveries, and the age of the oldest in milliseconds."""
    job, sent, now = table_of(Job), table_of(Delivery), clock.now()
    jobs = connection.execute(select(func.count(), func.min(job.c.due)).select_from(job)).one()
    due = connection.execute(
        select(func.count(), func.min(sent.c.due)).where(sent.c.due.is_not(None))
    ).one()
    return {
        "jobs": jobs[0],
        "jobs_age": max(0, now - jobs[1]) if jobs[1] is not None else 0,
        "deliveries": due[0],
        "deliveries_age": max(0, now - due[1]) if due[1] is not None else 0,
    }


def _rows(
    connection: Connection, kind: Any, *, without: Sequence[str] | set[str] = ()
) -> list[Row]:
    """Return all rows of a table that people make, times readable, the latest first."""
    table = table_of(kind)
    columns = [one for one in table.c if one.name not in {"id", *without}]
    rows = connection.execute(select(*columns).order_by(table.c.id.desc()).limit(MOST)).mappings()
    times = {"created", "expires", "used", "revoked", "retired"}
    return [
        {key: when(value) if key in times else _plain(value) for key, value in row.items()}
        for row in rows
    ]


def _plain(value: Any) -> Any:
    return base64.b64encode(value).decode("ascii") if isinstance(value, bytes) else value


def _beginning(text: str) -> str:
    """Return a pattern of LIKE for what begins with a text; ``/`` is its escape."""
    for special in "/%_":
        text = text.replace(special, f"/{special}")
    return f"{text}%"


def _printable(text: str | None) -> str | None:
    return printable(text) if text is not None else None


def _limit(limit: int) -> int:
    return max(1, min(limit, MOST))
