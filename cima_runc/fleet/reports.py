"""Hosts' reports: each is verified and applied in one transaction that holds the host's row.

Nothing is acknowledged before it is durable. What is refused changes no verdict and confirms
nothing: the deadline does the rest. Source: fleet, section 3.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, or_, select, update
from sqlalchemy.sql.elements import ColumnElement

from cima_runc.base import limits
from cima_runc.base.errors import CimaError
from cima_runc.base.text import printable
from cima_runc.evidence.report import Report, parse_report
from cima_runc.evidence.report_answer import Accepted, Confirmed, Invitation, Refused, Resync
from cima_runc.evidence.report_nonce import IssuedNonce, NonceMaker
from cima_runc.fleet import clock, events, findings, hosts, passed_on, work
from cima_runc.fleet.database import Database, NotStorableError, batched, together
from cima_runc.fleet.events import Told
from cima_runc.fleet.judge import Judge, News
from cima_runc.fleet.schema import Container, Host, table_of
from cima_runc.fleet.sessions import Sessions
from cima_runc.fleet.settings import Settings
from cima_runc.ml.contents import Measured
from cima_runc.verifier.errors import ClockError, VerificationError
from cima_runc.verifier.report.check import (
    OfHost,
    Proved,
    ReportPolicy,
    go_on,
    is_of_host,
    of_host,
)
from cima_runc.verifier.report.resync import NeedsResync

_HOST, _CONTAINER = table_of(Host), table_of(Container)
_SHOWN = 300
_CLOCK = 1 << 63
"""Milliseconds: what the database's numbers hold."""


class NotEnrolledError(CimaError):
    """The host is not enrolled, or not any more."""


@dataclass(frozen=True)
class Outcome:
    """What became of a report."""

    answer: Accepted | Resync
    is_accepted: bool


class Reports:
    """Takes reports; for any number of threads."""

    def __init__(
        self,
        database: Database,
        settings: Settings,
        judge: Judge,
        nonces: NonceMaker,
        sessions: Sessions,
    ) -> None:
        self._database = database
        self._settings = settings
        self._judge = judge
        self._nonces = nonces
        self._sessions = sessions
        gib = settings.host_gib
        self._room = round(gib * 1024 * limits.MIB) if gib is not None else None
        self._policy = ReportPolicy(
            pcr=settings.binding_pcr,
            host_pcr=settings.host_pcr,
            boot_pcrs=settings.boot_pcrs,
            require_safe_clock=settings.require_safe_clock,
        )

    def invitation(self, ak_name: str, *, proved: bool, connection: Connection) -> Invitation:
        """Return a nonce for a host; what others want of it too where it is ``proved``."""
        requests, challenges = passed_on.take(connection, ak_name) if proved else ((), ())
        return Invitation(
            nonce=self._nonces.issue(bytes.fromhex(ak_name), clock.now() / 1000),
            interval=self._settings.interval,
            min_interval=self._settings.min_interval,
            requests=requests,
            challenges=challenges,
        )

    def take(self, ak_name: str, body: bytes) -> Outcome:
        """Verify and apply a report, decompressed, of the host with this name (hexadecimal).

        Raises:
            NotEnrolledError: there is no such host.
            EvidenceError, NonceRefusedError, VerificationError: it is refused, and the class names
                the reason.
            DatabaseError: nothing was applied.
        """
        report = parse_report(body)
        nonce = self._nonces.check(report.payload.nonce, bytes.fromhex(ak_name), clock.now() / 1000)
        try:
            # Before SQLite's one writer is held: anybody can send a report that is not the host's.
            with self._database.read() as connection:
                ak = _key_of(connection, ak_name)
            its_own = of_host(report, ak, nonce, self._policy)
            with self._database.write() as connection:
                return self._apply(connection, ak_name, its_own)
        except (VerificationError, NotStorableError) as error:
            self._note_refusal(ak_name, report, nonce, error)
            raise

    def _apply(self, connection: Connection, ak_name: str, its_own: OfHost) -> Outcome:
        report = its_own.report
        try:
            host = hosts.lock(connection, ak_name)
        except hosts.UnknownHostError:
            raise _not_enrolled() from None
        known, rows = hosts.known(connection, host, report)
        found = go_on(its_own, known, self._policy)
        if isinstance(found, NeedsResync):
            confirmed = self._all_of_boot(connection, host, report)
            invitation = self.invitation(ak_name, proved=True, connection=connection)
            return Outcome(Resync(confirmed=confirmed, invitation=invitation), is_accepted=False)
        if found.counters.clock >= _CLOCK:
            raise ClockError("the TPM's clock is later than any that can be", expected="", found="")
        now = clock.now()
        after = self._keep(connection, host, found, rows, now)
        answer = Accepted(
            confirmed=_confirmed(after, found),
            session=self._sessions.make(ak_name, now / 1000),
            invitation=self.invitation(
                ak_name, proved=bool(host["is_asked"]), connection=connection
            ),
        )
        return Outcome(answer, is_accepted=True)

    # -- applying ---------------------------------------------------------------------------------

    def _keep(
        self,
        connection: Connection,
        host: Mapping[str, Any],
        found: Proved,
        rows: Mapping[int, Mapping[str, Any]],
        now: int,
    ) -> Mapping[str, Any]:
        deadline = round(
            (found.quoted_at + self._settings.overdue * self._settings.interval) * 1000
        )
        after = hosts.keep_host(
            connection,
            host,
            found,
            deadline=deadline,
            boot_pcrs=self._settings.boot_pcrs,
            now=now,
            room=self._room,
        )
        early = frozenset(
            event.registration
            for event in found.events
            if event.kind == "let-go" and event.registration is not None
        )
        vanished = hosts.let_go(connection, host["id"], found.gone, early)
        # An earlier run first: the one after it is judged by it.
        changes = sorted(found.registers, key=lambda one: one.register.run or 0)
        changed = hosts.keep_containers(
            connection, host["id"], changes, rows, now=now, room=self._room
        )
        self._tell(connection, host, found, vanished, now)
        news = {
            one.id: News(tuple(Measured(r.recnum, r.content) for r in one.records), one.since)
            for one in changed
            if one.matters
        }
        concerned = self._concerned(connection, host, after, found, set(news) | set(vanished))
        self._judge.judge(connection, concerned, after, news, now)
        if self._was_stale(host) and not found.new_boot:
            # With the verdicts that this report leaves.
            fresh = hosts.tenants_containers(connection, [host["id"]])
            kind = events.Kind.CONTAINER_FRESH
            told = [Told(kind, data, host["id"], container) for _, container, data in fresh]
            events.tell_all(connection, told, now)
        if hosts.awaits_resync(host):
            # Those that ended, and those of earlier boots: by the policies as they are here now.
            work.later(connection, work.REAPPRAISE, str(host["id"]))
        return after

    def _concerned(
        self,
        connection: Connection,
        before: Mapping[str, Any],
        after: Mapping[str, Any],
        found: Proved,
        changed: set[int],
    ) -> list[dict[str, Any]]:
        """Return the containers whose verdict may be another now, earlier runs first."""
        registrations = [one.register.registration for one in found.registers]
        registers = [*(one.register for one in found.registers), *found.gone]
        services = [one.registration for one in registers if one.kind == "dependencies"]
        wanted: list[ColumnElement[bool]] = [
            _CONTAINER.c.id.in_(some) for some in batched(sorted(changed))
        ]
        of_boot = _CONTAINER.c.boot_id == found.boot_id
        wanted += [_CONTAINER.c.previous_registration.in_(some) for some in batched(registrations)]
        wanted += [of_boot & _CONTAINER.c.services.in_(some) for some in batched(services)]
        if found.new_boot or self._says_of_host(before) != self._says_of_host(after):
            wanted.append(of_boot & _CONTAINER.c.has_ended.is_(False))
        elif after["log_lines"] != before["log_lines"]:
            # What a service runs may be in the log now.
            wanted.append(of_boot & _CONTAINER.c.id.in_(findings.waiting_for_log(before["id"])))
        containers: dict[int, dict[str, Any]] = {}
        for condition in together(wanted):
            rows = connection.execute(
                select(_CONTAINER).where(
                    _CONTAINER.c.host == before["id"],
                    _CONTAINER.c.kind == "container",
                    condition,
                )
            ).mappings()
            containers |= {row["id"]: dict(row) for row in rows}
        return sorted(containers.values(), key=lambda one: (one["run"] or 0, one["id"]))

    def _was_stale(self, host: Mapping[str, Any]) -> bool:
        return host["deadline"] is not None and host["stale_told"] == host["deadline"]

    def _says_of_host(self, host: Mapping[str, Any]) -> Any:
        """Return what of a host containers are appraised by."""
        if host["status"] is None:
            return None
        pcrs = {str(pcr): host["pcrs"].get(str(pcr)) for pcr in self._settings.boot_pcrs}
        in_full = host["log"].get("disclosure") == "full"
        lines = host["log_lines"] if in_full else host["log_lines"] > 0
        log = {key: value for key, value in host["log"].items() if key != "kept"}
        return host["status"], pcrs, log, lines

    def _tell(
        self,
        connection: Connection,
        host: Mapping[str, Any],
        found: Proved,
        vanished: list[int],
        now: int,
    ) -> None:
        number, told = host["id"], []
        if self._was_stale(host):
            told.append(Told(events.Kind.HOST_FRESH, {}, number))
        for event in found.events:
            if event.kind == "let-go":
                continue
            kind = events.Kind.HOST_BOOTED if event.kind == "boot" else events.Kind.HOST_NOTICE
            told.append(Told(kind, {"notice": event.kind, "what": event.what}, number))
        kind, what = events.Kind.VANISHED, "its register was given up before its end was proved"
        if hosts.awaits_resync(host):
            # The database was restored: what came since its copy is not with this host any more.
            kind = events.Kind.RECORDS_GONE
            what = "its end is not proved, and its host has no more of it"
            vanished = [*vanished, *hosts.left_behind(connection, number, found.boot_id)]
        told += [Told(kind, {"what": what}, number, container) for container in vanished]
        events.tell_all(connection, told, now)

    def _all_of_boot(
        self, connection: Connection, host: Mapping[str, Any], report: Report
    ) -> Confirmed:
        same = host["boot_id"] == report.payload.boot_id
        listed = [one.registration for one in report.payload.containers][:500]
        column = _CONTAINER.c
        # There is no end to what a boot has started. Of what has no register any more the host
        # tells nothing unless it is listed.
        is_listed = column.registration.in_(listed)
        rows = connection.execute(
            select(column.registration, column.confirmed, column.held)
            .where(
                column.host == host["id"],
                column.is_sealed.is_(False),
                or_(column.boot_id == report.payload.boot_id, is_listed),
            )
            .order_by(is_listed.desc(), column.slot.is_(None), column.id.desc())
            .limit(limits.REPORT_CONTAINERS)
        ).all()
        return Confirmed(
            base=host["table"] if same else None,
            host_log=hosts.log_lines(host) if same else 0,
            boot_log=same and host["has_boot_log"],
            records={str(row.registration): row.confirmed for row in rows},
            held={str(row.registration): row.held for row in rows if row.held},
        )

    def _note_refusal(
        self, ak_name: str, report: Report, nonce: IssuedNonce, error: CimaError
    ) -> None:
        """Remember why the host's latest report was refused; tell of it once for each reason.

        Anybody can send a report that is not the host's: of those the first is told of, until one
        is accepted, so that strangers cannot fill what people look at, nor hide what the host does.
        """
        name = type(error).__name__
        column = _HOST.c
        with self._database.read() as connection:
            row = connection.execute(
                select(column.id, column.refused, column.ak_public).where(column.ak_name == ak_name)
            ).first()
        if row is None or row.refused == name:
            return
        if row.refused and not is_of_host(report, row.ak_public, nonce):
            return
        with self._database.write() as connection:
            changed = connection.execute(
                update(_HOST)
                .where(column.id == row.id, column.refused == row.refused)
                .values(refused=name, refused_at=clock.now())
            )
            if not changed.rowcount:
                return  # another report was taken or refused meanwhile
            data = {"error": name, "what": printable(error.what)[:_SHOWN]}
            events.tell(connection, events.Kind.HOST_REFUSED, data, host=row.id)


def _key_of(connection: Connection, ak_name: str) -> bytes:
    """Return an enrolled host's attestation key.

    Raises:
        NotEnrolledError: there is no such host.
    """
    column = _HOST.c
    is_it = (column.ak_name == ak_name) & (column.state == "enrolled")
    found: bytes | None = connection.execute(select(column.ak_public).where(is_it)).scalar()
    if found is None:
        raise _not_enrolled()
    return found


def _not_enrolled() -> NotEnrolledError:
    return NotEnrolledError("the host is not enrolled", hint="enrol it: cima configure fleet")


def _confirmed(host: Mapping[str, Any], found: Proved) -> Confirmed:
    readable = [one.register for one in found.registers if one.register.secret is not None]
    return Confirmed(
        base=found.table_digest,
        host_log=host["log_lines"],
        boot_log=host["has_boot_log"],
        records={str(one.registration): one.proved.count for one in readable},
        held={
            str(one.registration): one.held.count - one.proved.count if one.held else 0
            for one in readable
        },
    )


def refusal(error: CimaError) -> Refused:
    """Return an error as a host is told of it."""
    return Refused(
        error=type(error).__name__,
        what=printable(error.what)[:_SHOWN],
        hint=printable(error.hint)[:_SHOWN],
    )
