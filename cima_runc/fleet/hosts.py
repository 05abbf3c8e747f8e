"""What is kept of hosts: read as the verification of a report wants it, written as it left it."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import (
    Connection,
    ScalarSelect,
    and_,
    delete,
    func,
    insert,
    not_,
    or_,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.sql.elements import ColumnElement

from cima_runc.base import limits
from cima_runc.base.text import printable
from cima_runc.cpcr.sparse import SparseTable
from cima_runc.cpcr.status import Status
from cima_runc.evidence.fields import as_tuples
from cima_runc.evidence.report import Report
from cima_runc.fleet import host_logs
from cima_runc.fleet.database import batched, together, update_all
from cima_runc.fleet.schema import (
    Appraisal,
    Audit,
    Container,
    EvidenceRequest,
    Finding,
    Held,
    Host,
    HostBoot,
    HostTable,
    Line,
    Owner,
    Record,
    TenantKey,
    new_uid,
    table_of,
)
from cima_runc.fleet.values import measured_layers
from cima_runc.ml.contents import (
    NO_ENGINE,
    Config,
    Engine,
    Exit,
    File,
    Previous,
    Register,
    RegisterV1,
    Rootfs,
)
from cima_runc.ml.pods import pod_of
from cima_runc.verifier.errors import Verdict, VerificationError
from cima_runc.verifier.report.check import Proved, Wanted, wanted
from cima_runc.verifier.report.errors import BootIdError
from cima_runc.verifier.report.known import (
    Chain,
    Counters,
    Known,
    KnownLog,
    KnownRegister,
    KnownTable,
)
from cima_runc.verifier.report.partitions import CheckedRecord, RegisterChange

_HOST, _TABLE, _CONTAINER = table_of(Host), table_of(HostTable), table_of(Container)
_BOOT = table_of(HostBoot)
_RECORD, _HELD, _OWNER, _LINE = table_of(Record), table_of(Held), table_of(Owner), table_of(Line)

_BATCH = 500


_EACH = 1_024
"""Bytes that a container counts for itself: its rows stay when its records have gone."""


class QuotaError(VerificationError):
    """The host has sent more than is kept of one: its operator decides, and until then it is
    STALE."""

    verdict = Verdict.UNKNOWN


class UnknownHostError(Exception):
    """No such host is enrolled."""


def lock(connection: Connection, ak_name: str) -> Mapping[str, Any]:
    """Return a host's row, which nobody else changes until the transaction has ended.

    Beside its columns ``is_asked``: whether a tenant's request waits for it; and ``change``, which
    is another after each change of what containers are appraised with.

    Raises:
        UnknownHostError: there is none.
    """
    row = (
        connection.execute(
            select(_HOST, _is_asked().label("is_asked"), _change().label("change"))
            .where(_HOST.c.ak_name == ak_name)
            .with_for_update(of=_HOST)
        )
        .mappings()
        .first()
    )
    if row is None or row["state"] != "enrolled":
        raise UnknownHostError
    return dict(row)


def _change() -> ScalarSelect[str]:
    # Each is an entry of the audit log, in its own transaction; a digest is over all before it.
    entry = table_of(Audit).c
    return select(entry.digest).order_by(entry.number.desc()).limit(1).scalar_subquery()


def _is_asked() -> ColumnElement[bool]:
    asked = table_of(EvidenceRequest)
    return select(asked.c.id).where(asked.c.host == _HOST.c.id, asked.c.answered.is_(None)).exists()


def known(
    connection: Connection, host: Mapping[str, Any], report: Report
) -> tuple[Known, dict[int, Mapping[str, Any]]]:
    """Return what a report of a host is to be compared with, and the rows of the containers that it
    is of, by registration."""
    counters = None
    if host["reset_count"] is not None:
        counters = Counters(host["reset_count"], host["restart_count"], host["clock"])
    table = None
    if host["table"] is not None:

        def load() -> SparseTable:
            raw = connection.execute(
                select(_TABLE.c.content).where(_TABLE.c.host == host["id"])
            ).scalar_one()
            return SparseTable.from_bytes(raw)

        table = KnownTable(host["table"], host["slots"], load)
    lines = log_lines(host)
    log = KnownLog(lines, host["log_value"]) if lines else None
    status = host["status"]
    registers, rows = _registers(connection, host["id"], wanted(report), report.payload.boot_id)
    found = Known(
        ak=host["ak_public"],
        counters=counters,
        boot_id=host["boot_id"],
        table=table,
        status=Status.model_validate(as_tuples(status)) if status is not None else None,
        host_log=log,
        registers=registers,
    )
    return found, rows


def _registers(
    connection: Connection, host: int, wants: Wanted, boot_id: str
) -> tuple[dict[int, KnownRegister], dict[int, Mapping[str, Any]]]:
    column = _CONTAINER.c
    conditions: list[ColumnElement[bool]] = []
    if wants.all_of_boot:
        # Of the boot's others, of which there is no end, those that are listed are looked for.
        conditions.append(and_(column.boot_id == boot_id, column.slot.is_not(None)))
    for name, numbers in (
        (column.registration, sorted(wants.registrations)),
        (column.previous_registration, sorted(wants.followed)),
    ):
        conditions += [name.in_(some) for some in batched(numbers)]
    conditions += [
        and_(column.boot_id == boot_id, column.slot.in_(some))
        for some in batched(sorted(wants.slots))
    ]
    found: dict[int, KnownRegister] = {}
    kept: dict[int, Mapping[str, Any]] = {}
    for condition in together(conditions):
        rows = connection.execute(
            select(_CONTAINER).where(column.host == host, condition)
        ).mappings()
        ids = {}
        for row in rows:
            one = dict(row)
            kept[one["registration"]] = one
            ids[one["id"]] = register_of(one)
        owners = _owners(connection, list(ids))
        found |= {
            one.registration: replace(one, owners=tuple(owners.get(number, ())))
            for number, one in ids.items()
        }
    return found, kept


def _owners(connection: Connection, containers: Sequence[int]) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for some in batched(containers):
        rows = connection.execute(
            select(_OWNER.c.container, _OWNER.c.key)
            .where(_OWNER.c.container.in_(some))
            .order_by(_OWNER.c.container, _OWNER.c.number)
        )
        for container, key in rows:
            found.setdefault(container, []).append(key)
    return found


def register_of(row: Mapping[str, Any]) -> KnownRegister:
    """Return a container's row as a report is compared with it; without its owners."""
    previous = row["previous"]
    proved = Chain(
        row["confirmed"],
        row["cpcr"],
        Previous.model_validate(previous) if previous is not None else None,
        row["has_ended"],
        row["late"],
    )
    held = None
    if row["held"]:
        chain = row["held_chain"]
        before = chain["previous"]
        held = Chain(
            row["confirmed"] + row["held"],
            bytes.fromhex(chain["cpcr"]),
            Previous.model_validate(before) if before is not None else None,
            chain["ended"],
            chain.get("late", 0),
        )
    return KnownRegister(
        registration=row["registration"],
        boot_id=row["boot_id"],
        slot=row["slot"],
        id=row["name"],
        kind=row["kind"],
        line=bytes.fromhex(row["line"]) if row["line"] is not None else None,
        run=row["run"],
        owners=(),
        services=row["services"],
        state=row["state"],
        said=row["count"],
        secret=row["secret"],
        proved=proved,
        held=held,
    )


@dataclass(frozen=True)
class Changed:
    """A container of which a report proved something new."""

    id: int
    records: tuple[CheckedRecord, ...]
    """Newly proved, those too that were held."""
    since: int
    matters: bool
    """Whether its verdict may be another; where it only lost its slot, it is not."""


def keep_host(
    connection: Connection,
    host: Mapping[str, Any],
    proved: Proved,
    *,
    deadline: int,
    boot_pcrs: Sequence[int],
    now: int,
    room: int | None,
) -> dict[str, Any]:
    """Write what a report proved of the host itself; return its row as it is now. ``room`` is how
    many bytes may be kept of the host; None: there is no end.

    Raises:
        BootIdError: the boot is one that was over.
        QuotaError: there is no room for what is new of its log.
    """
    grown = 0
    values: dict[str, Any] = {
        "reset_count": proved.counters.reset_count,
        "restart_count": proved.counters.restart_count,
        "clock": proved.counters.clock,
        "quoted": round(proved.quoted_at * 1000),
        "deadline": deadline,
    }
    status = proved.status.model_dump(mode="json")
    pcrs = {str(pcr): value.hex() for pcr, value in sorted(proved.pcrs.items())}
    # PCR 12 changes with every bind, and PCR 10 with every line: they are not the boot's.
    for name, value in (
        ("boot_id", proved.boot_id),
        ("table", proved.table_digest),
        ("status", status),
        ("pcrs", pcrs),
        ("refused", ""),
    ):
        if host[name] != value:
            values[name] = value
    if proved.new_boot:
        values |= {"log_lines": 0, "log_value": None, "has_boot_log": False}
        # After a restore there is nothing that it had proved.
        if host["boot_id"] is not None and host["status"] is not None:
            grown -= _keep_boot(connection, host, proved.boot_id, now)
    log = _log(host, proved, boot_pcrs)
    values |= {key: value for key, value in log.items() if value != values.get(key, host[key])}
    if proved.host_log is not None:
        first = proved.host_log.lines - len(proved.host_entries)
        entries = proved.host_entries
        grown += host_logs.keep(connection, host["id"], proved.boot_id, first, entries)
    if proved.boot_log is not None:
        values["has_boot_log"] = True
    if proved.table is not None:
        values["slots"] = proved.table.slots
        content = proved.table.to_bytes()
        done = connection.execute(
            update(_TABLE).where(_TABLE.c.host == host["id"]).values(content=content)
        )
        if not done.rowcount:
            connection.execute(insert(_TABLE).values(host=host["id"], content=content))
    row = {**values, "stored": _HOST.c.stored + grown} if grown else values
    stored = connection.execute(
        update(_HOST).where(_HOST.c.id == host["id"]).values(**row).returning(_HOST.c.stored)
    ).scalar_one()
    _check_room(stored, grown, room)
    return {**host, **values}


def log_lines(host: Mapping[str, Any]) -> int:
    """Return how many entries of the host's log the service has; 0: it is to be sent from its
    beginning. A process of an earlier version, in an upgrade, confirms entries and keeps none."""
    lines: int = host["log_lines"]
    return lines if (host["log"] or {}).get("kept") == lines else 0


def _log(before: Mapping[str, Any], proved: Proved, boot_pcrs: Sequence[int]) -> dict[str, Any]:
    """Return what is to be kept of the host's log: its length, and what it says."""
    lines = 0 if proved.new_boot else log_lines(before)
    said = {} if proved.new_boot else before["log"]
    found: dict[str, Any] = {}
    if proved.host_log is not None:
        is_first = lines == 0
        if proved.host_entries or is_first or "hidden" in said:
            kept = {"moved": said["moved"]} if "moved" in said else {}
            said = {**host_logs.facts(said, proved.host_entries, is_first=is_first), **kept}
        now = proved.host_log.lines
        said = {**said, "aggregate": host_logs.begins(said, proved.pcrs), "kept": now}
        found = {"log_lines": now, "log_value": proved.host_log.value}
    elif not proved.new_boot and before["log_lines"]:
        said = {**said, "hidden": True}
    if not proved.new_boot and before["pcrs"]:
        moved = {
            pcr
            for pcr in boot_pcrs
            if before["pcrs"].get(str(pcr)) not in (None, proved.pcrs[pcr].hex())
        }
        if moved:
            said = {**said, "moved": sorted(moved | set(said.get("moved", ())))}
    return {**found, "log": said}


def _keep_boot(connection: Connection, host: Mapping[str, Any], boot_id: str, now: int) -> int:
    """Keep what a boot that is over had proved; forget the oldest where there are too many. Returns
    how many bytes of those are gone."""
    of_host = _BOOT.c.host == host["id"]
    known = connection.execute(
        select(_BOOT.c.boot_id).where(of_host).order_by(_BOOT.c.ended.desc())
    ).scalars()
    earlier = list(known)
    if boot_id in earlier:
        raise BootIdError(
            "the boot is one that was over",
            expected="a boot that was not reported yet",
            found=f"boot {boot_id}",
            hint="two hosts with one attestation key: do not rely on either",
        )
    freed = _forget_boots(connection, host["id"], earlier[limits.FLEET_BOOTS - 1 :])
    names = ("boot_id", "status", "pcrs", "log_lines", "log", "has_boot_log")
    row = {name: host[name] for name in names}
    connection.execute(insert(_BOOT).values(host=host["id"], ended=now, **row))
    return freed


def _forget_boots(connection: Connection, host: int, boots: Sequence[str]) -> int:
    """Remove what boots had proved; return how many bytes of their logs that was."""
    for boot_id in boots:
        is_it = and_(_BOOT.c.host == host, _BOOT.c.boot_id == boot_id)
        connection.execute(delete(_BOOT).where(is_it))
    return host_logs.forget(connection, host, boots)


def boot(connection: Connection, host: int, boot_id: str) -> Mapping[str, Any] | None:
    """Return the row of a boot of a host's that is over; None: nothing of it is kept."""
    found = connection.execute(
        select(_BOOT).where(_BOOT.c.host == host, _BOOT.c.boot_id == boot_id)
    )
    row = found.mappings().first()
    return dict(row) if row is not None else None


def keep_containers(
    connection: Connection,
    host: int,
    changes: Sequence[RegisterChange],
    known: Mapping[int, Mapping[str, Any]],
    *,
    now: int,
    room: int | None,
) -> list[Changed]:
    """Write what a report says of registrations: their rows, and their records, proved or held.

    ``changes`` have earlier runs first, so that their rows come first; ``known`` are the rows that
    they have, as they were before the report. ``room`` is how many bytes may be kept of the host;
    None: there is no end.

    Raises:
        QuotaError: it would be more than that.
    """
    new = [one for one in changes if one.register.registration not in known]
    numbers = _insert_containers(connection, host, new, now)
    numbers |= {registration: row["id"] for registration, row in known.items()}
    kept, values, records, held = [], [], [], []
    grown = len(new) * _EACH
    for change in changes:
        one = change.register
        number, before = numbers[one.registration], known.get(one.registration)
        confirmed = before["confirmed"] if before is not None else 0
        proved, waiting, gone = _sort_records(connection, number, change, before)
        grown += sum(len(record.line) for record in (*proved, *waiting)) - gone
        matters = before is None
        if before is not None:
            row = _row(one)
            changed = {key: value for key, value in row.items() if before[key] != value}
            matters = bool(changed.keys() - {"slot", "state"})
            if changed:
                values.append((number, {"last_change": now, **changed, **_facts(proved)}))
        records += [_record_row(number, record, now) for record in proved]
        held += [
            {"container": number, "number": record.recnum, "content": record.line}
            for record in waiting
        ]
        kept.append(Changed(number, proved, confirmed, matters or bool(proved)))
    update_all(connection, _CONTAINER, values)
    _grow(connection, host, grown, room)
    for table, rows in ((_RECORD, records), (_HELD, held)):
        if rows:
            connection.execute(insert(table), rows)
    # Of what was proved before with its line, the line is known.
    begun = [
        one.register
        for one in changes
        if (before := known.get(one.register.registration)) is None
        or not before["confirmed"]
        or before["line"] is None
    ]
    _keep_lines(connection, host, numbers, begun)
    return kept


def _grow(connection: Connection, host: int, by: int, room: int | None) -> None:
    """Note that more is kept of a host, or less; see that there is room for it."""
    if not by:
        return
    stored = connection.execute(
        update(_HOST)
        .where(_HOST.c.id == host)
        .values(stored=_HOST.c.stored + by)
        .returning(_HOST.c.stored)
    ).scalar_one()
    _check_room(stored, by, room)


def _check_room(stored: int, by: int, room: int | None) -> None:
    """See that there is room for what is kept of a host, where it has become more."""
    if by > 0 and room is not None and stored > room:
        raise QuotaError(
            "the service keeps no more of this host",
            expected=f"{room} bytes",
            found=f"{stored} bytes",
            hint="host_gib in the service's settings, or remove the host",
        )


def _insert_containers(
    connection: Connection, host: int, new: Sequence[RegisterChange], now: int
) -> dict[int, int]:
    """Write rows of registrations that are new; return their numbers."""
    if not new:
        return {}
    made = connection.execute(
        insert(_CONTAINER).returning(
            _CONTAINER.c.registration, _CONTAINER.c.id, sort_by_parameter_order=True
        ),
        [
            {
                "uid": new_uid(),
                "host": host,
                "first_seen": now,
                "last_change": now,
                "since": now,
                "registration": one.register.registration,
                "vanished": False,
                "forgotten": False,
                "verdict": "UNKNOWN",
                "enforced": None,
                "layers": None,
                "namespace": None,
                "pod": None,
                "end": "",
                **_row(one.register),
                **_facts(_proved(one.records, 0, one.register)),
            }
            for one in new
        ],
    )
    numbers = {row.registration: row.id for row in made}
    owners = [
        {"container": numbers[one.register.registration], "number": at, "key": key}
        for one in new
        for at, key in enumerate(one.register.owners)
    ]
    if owners:
        connection.execute(insert(_OWNER), owners)
    return numbers


def _row(one: KnownRegister) -> dict[str, Any]:
    previous = one.proved.previous
    held = one.held.count - one.proved.count if one.held is not None else 0
    chain = None
    if one.held is not None and held:
        before = one.held.previous
        chain = {
            "cpcr": one.held.cpcr.hex(),
            "previous": before.model_dump(mode="json") if before is not None else None,
            "ended": one.held.ended,
            "late": one.held.late,
        }
    return {
        "boot_id": one.boot_id,
        "name": one.id,
        "kind": one.kind,
        "state": one.state,
        "slot": one.slot,
        "is_sealed": one.secret is None,
        "line": one.line.hex() if one.line is not None else None,
        "run": one.run,
        "previous": previous.model_dump(mode="json") if previous is not None else None,
        "previous_registration": previous.registration if previous is not None else None,
        "services": one.services,
        "count": one.said,
        "confirmed": one.proved.count,
        "cpcr": one.proved.cpcr,
        "held": held,
        "held_chain": chain,
        "secret": one.secret,
        "has_ended": one.proved.ended,
        "late": one.proved.late,
        "place_proved": True,
    }


def _sort_records(
    connection: Connection,
    number: int,
    change: RegisterChange,
    before: Mapping[str, Any] | None,
) -> tuple[tuple[CheckedRecord, ...], list[CheckedRecord], int]:
    """Return the records that are newly proved, those that wait, and how many bytes of those that
    waited are gone."""
    one, gone = change.register, 0
    confirmed = before["confirmed"] if before is not None else 0
    new = {record.recnum: record for record in change.records}
    if before is not None and before["held"]:
        # What came again replaces what was held; what was held may be proved now.
        rows = connection.execute(
            select(_HELD.c.number, _HELD.c.content).where(
                _HELD.c.container == number, _HELD.c.number < change.since
            )
        ).all()
        if one.proved.count > confirmed:
            new |= {row.number: _checked(row.number, row.content) for row in rows}
        stale = and_(
            _HELD.c.container == number,
            or_(_HELD.c.number >= change.since, _HELD.c.number < one.proved.count),
        )
        lost = delete(_HELD).where(stale).returning(func.length(_HELD.c.content))
        gone = sum(connection.execute(lost).scalars())
    waiting = [
        record for record in change.records if record.recnum >= max(one.proved.count, change.since)
    ]
    return _proved([new[at] for at in sorted(new)], confirmed, one), waiting, gone


def _proved(
    records: Iterable[CheckedRecord], confirmed: int, after: KnownRegister
) -> tuple[CheckedRecord, ...]:
    return tuple(one for one in records if confirmed <= one.recnum < after.proved.count)


def _checked(number: int, raw: bytes) -> CheckedRecord:
    from cima_runc.fleet.verdicts import measured_line

    return CheckedRecord(number, b"", measured_line(raw).content, raw)


def _record_row(container: int, record: CheckedRecord, now: int) -> dict[str, Any]:
    content = record.content
    is_file = isinstance(content, File)
    return {
        "container": container,
        "number": record.recnum,
        "content": record.line,
        "file_digest": content.digest if is_file else None,  # type: ignore[union-attr]
        "path": content.path if is_file else None,  # type: ignore[union-attr]
        "time": now,
    }


def _facts(records: Sequence[CheckedRecord]) -> dict[str, Any]:
    """Return what of its records a container is chosen by, or is shown in every list: so no text of
    it has more than a label may."""
    values: dict[str, Any] = {}
    engine = NO_ENGINE
    for record in records:
        match record.content:
            case RegisterV1() as first:
                values["enforced"] = first.enforced
                # What a user's own engine says of a pod is the user's word.
                engine = (first.engine if first.uid is None else None) or NO_ENGINE
                if isinstance(first, Register):
                    values["run"] = first.run
            case Config() as config:
                values |= _pod(engine, config)
            case Rootfs() as rootfs:
                values["layers"] = measured_layers(rootfs.layers)
            case Exit() as end:
                values["end"] = end.reason
    return {
        name: value[: limits.LABEL] if isinstance(value, str) else value
        for name, value in values.items()
    }


def _pod(engine: Engine, config: Config) -> dict[str, Any]:
    """Return a pod's namespace and name, as the engine that made the container wrote them."""
    annotations = config.config.get("annotations")
    pod = pod_of(engine, annotations if isinstance(annotations, dict) else {})
    return {"namespace": pod.namespace, "pod": pod.name or None} if pod.namespace else {}


def _keep_lines(
    connection: Connection,
    host: int,
    numbers: Mapping[int, int],
    registers: Sequence[KnownRegister],
) -> None:
    """Remember the latest run that is proved of each container's line."""
    latest: dict[str, tuple[int, int]] = {}
    for one in registers:
        is_container = one.kind == "container" and one.proved.count > 0
        if is_container and one.line is not None and one.run is not None:
            line, run = one.line.hex(), one.run
            if line not in latest or run > latest[line][0]:
                latest[line] = (run, numbers[one.registration])
    rows = [
        {"host": host, "line": line, "run": run, "container": container}
        for line, (run, container) in latest.items()
    ]
    if rows:
        upsert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
        new = upsert(_LINE)
        later = {"run": new.excluded.run, "container": new.excluded.container}
        connection.execute(
            new.on_conflict_do_update(
                index_elements=["host", "line"], set_=later, where=_LINE.c.run < new.excluded.run
            ),
            rows,
        )


def awaits_resync(host: Mapping[str, Any]) -> bool:
    """Return whether the database was restored and the host has not reported since."""
    return host["status"] is None and host["boot_id"] is not None


def let_go(
    connection: Connection, host: int, gone: Sequence[KnownRegister], early: frozenset[int]
) -> list[int]:
    """Write that registrations have no slot any more; return the containers of those for which this
    came before their end was proved."""
    of_host, registration = _CONTAINER.c.host == host, _CONTAINER.c.registration
    registrations = [one.registration for one in gone]
    for some in batched(registrations):
        these = of_host & registration.in_(some)
        connection.execute(update(_CONTAINER).where(these).values(slot=None))
    vanished: list[int] = []
    for some in batched([one for one in registrations if one in early]):
        these = of_host & registration.in_(some)
        connection.execute(update(_CONTAINER).where(these).values(vanished=True))
        vanished += connection.execute(select(_CONTAINER.c.id).where(these)).scalars()
    return sorted(vanished)


def left_behind(connection: Connection, host: int, boot_id: str) -> list[int]:
    """Return the containers of boots that are over whose end was not proved."""
    column = _CONTAINER.c
    found = connection.execute(
        select(column.id).where(
            column.host == host,
            column.boot_id != boot_id,
            column.kind == "container",
            column.slot.is_not(None),
            column.has_ended.is_(False),
        )
    )
    return list(found.scalars())


def tenants_containers(
    connection: Connection, hosts: Sequence[int]
) -> list[tuple[int, int, dict[str, Any]]]:
    """Return the tenants' containers whose verdicts go stale with their hosts, and fresh with them:
    each one's host and number, and what an event says of it."""
    owner, key = _OWNER.c, table_of(TenantKey).c
    rows = connection.execute(
        select(_CONTAINER.c.host, _CONTAINER.c.id, _CONTAINER.c.name, _CONTAINER.c.verdict)
        .join(_HOST, _HOST.c.id == _CONTAINER.c.host)
        .join(_OWNER, owner.container == _CONTAINER.c.id)
        .join(table_of(TenantKey), key.key == owner.key)
        .where(
            _CONTAINER.c.host.in_(hosts),
            _CONTAINER.c.boot_id == _HOST.c.boot_id,
            _CONTAINER.c.slot.is_not(None),
            _CONTAINER.c.has_ended.is_(False),
            _CONTAINER.c.verdict != "UNTRUSTED",
        )
        .distinct()
    )
    return [
        (row.host, row.id, {"container": printable(row.name), "verdict": row.verdict})
        for row in rows
    ]


def _alone_with(connection: Connection, hosts: Iterable[int]) -> None:
    """Let no report of hosts be taken until this transaction has ended, nor be waited for by one
    that waits for it: a report has its host's row before any other."""
    for some in batched(sorted(set(hosts))):
        rows = select(_HOST.c.id).where(_HOST.c.id.in_(some)).order_by(_HOST.c.id)
        connection.execute(rows.with_for_update())


def _sizes(connection: Connection, containers: Sequence[int]) -> Counter[int]:
    """Return how many bytes of records of containers are kept, by host."""
    found: Counter[int] = Counter()
    for table in (_RECORD, _HELD):
        rows = connection.execute(
            select(_CONTAINER.c.host, func.sum(func.length(table.c.content)))
            .join(table, table.c.container == _CONTAINER.c.id)
            .where(_CONTAINER.c.id.in_(containers))
            .group_by(_CONTAINER.c.host)
        )
        for host, size in rows:
            found[host] += int(size)
    return found


def forget_containers(connection: Connection, before: int) -> bool:
    """Remove the records and findings of containers that ended, or whose boot did, before a time;
    that they were there, and the verdicts that they had, stays. Returns whether there may be more.
    """
    column = _CONTAINER.c
    current = select(_HOST.c.boot_id).where(_HOST.c.id == column.host).scalar_subquery()
    recently = (
        select(_BOOT.c.host)
        .where(_BOOT.c.host == column.host, _BOOT.c.boot_id == column.boot_id)
        .where(_BOOT.c.ended >= before)
        .exists()
    )
    # What runs when its host reboots never gives its slot up.
    over = or_(
        and_(column.has_ended.is_(True), column.slot.is_(None)),
        and_(column.boot_id != current, not_(recently)),
    )
    found = connection.execute(
        select(column.id, column.host)
        .where(column.last_change < before, column.forgotten.is_(False), over)
        .limit(_BATCH)
    ).all()
    old = [row.id for row in found]
    boots = connection.execute(
        select(_BOOT.c.host, _BOOT.c.boot_id).where(_BOOT.c.ended < before).limit(_BATCH)
    ).all()
    _alone_with(connection, (row.host for row in (*found, *boots)))
    freed = _sizes(connection, old)
    for table in (_RECORD, _HELD, table_of(Finding), table_of(Appraisal)):
        connection.execute(delete(table).where(table.c.container.in_(old)))
    connection.execute(
        update(_CONTAINER).where(column.id.in_(old)).values(forgotten=True, slot=None)
    )
    for host, boot_id in boots:
        freed[host] += _forget_boots(connection, host, [boot_id])
    for host, size in freed.items():
        _grow(connection, host, -size, None)
    return _BATCH in {len(old), len(boots)}
