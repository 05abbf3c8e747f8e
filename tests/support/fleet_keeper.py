"""What a service keeps of one host, in memory: takes reports, and answers as a service does."""

from dataclasses import replace

from cima_runc.evidence.report import Report, parse_report
from cima_runc.evidence.report_answer import Accepted, Confirmed, Invitation, Resync
from cima_runc.evidence.report_nonce import NonceMaker
from cima_runc.tpm.structures import parse_public
from cima_runc.verifier.report.check import Proved, ReportPolicy, check_report
from cima_runc.verifier.report.known import Known, KnownTable
from cima_runc.verifier.report.partitions import CheckedRecord
from cima_runc.verifier.report.resync import NeedsResync


class Keeper:
    """One host's service."""

    def __init__(self, ak_public: bytes, policy: ReportPolicy | None = None) -> None:
        self.known = Known(ak=ak_public)
        self.ak_name = parse_public(ak_public).name
        self.nonces = NonceMaker(bytes(32))
        self.now = 1_000_000.0
        self.records: dict[int, list[CheckedRecord]] = {}
        self.boot_log = False
        self.policy = policy
        self.last: Proved | None = None

    def nonce(self) -> bytes:
        return self.nonces.issue(self.ak_name, self.now)

    def take(self, body: bytes) -> Accepted | Resync:
        """Take a report. Raises whatever it is refused with."""
        report = parse_report(body)
        nonce = self.nonces.check(report.payload.nonce, self.ak_name, self.now)
        found = check_report(report, self.known, nonce, self.policy)
        if isinstance(found, NeedsResync):
            return self._resync(report)
        self._keep(found)
        numbers = [change.register for change in found.registers]
        return Accepted(
            confirmed=Confirmed(
                base=found.table_digest,
                host_log=found.host_log.lines if found.host_log else 0,
                boot_log=self.boot_log,
                records={
                    str(one.registration): one.proved.count
                    for one in numbers
                    if one.secret is not None
                },
                held={
                    str(one.registration): one.held.count - one.proved.count if one.held else 0
                    for one in numbers
                    if one.secret is not None
                },
            ),
            session="session",
            invitation=self.invitation(),
        )

    def invitation(self) -> Invitation:
        return Invitation(nonce=self.nonce(), interval=60.0, min_interval=2.0)

    def _resync(self, report: Report) -> Resync:
        known = self.known
        same = known.boot_id == report.payload.boot_id
        some = {str(number): one for number, one in known.registers.items() if one.secret}
        return Resync(
            confirmed=Confirmed(
                base=known.table.digest if same and known.table else None,
                host_log=known.host_log.lines if same and known.host_log else 0,
                boot_log=same and self.boot_log,
                records={number: one.proved.count for number, one in some.items()},
                held={
                    number: one.held.count - one.proved.count
                    for number, one in some.items()
                    if one.held
                },
            ),
            invitation=self.invitation(),
        )

    def _keep(self, found: Proved) -> None:
        registers = dict(self.known.registers)
        for one in found.gone:
            registers[one.registration] = replace(one, slot=None)
        for change in found.registers:
            registers[change.register.registration] = change.register
            kept = self.records.setdefault(change.register.registration, [])
            kept[change.since :] = change.records
        table = self.known.table
        if found.table is not None:
            table = KnownTable.of(found.table)
        self.boot_log = found.boot_log is not None or (self.boot_log and not found.new_boot)
        self.known = Known(
            ak=self.known.ak,
            counters=found.counters,
            boot_id=found.boot_id,
            table=table,
            status=found.status,
            host_log=found.host_log,
            registers=registers,
        )
        self.last = found

    def contents(self, registration: int) -> list[object]:
        """What is proved of a registration."""
        count = self.known.registers[registration].proved.count
        return [one.content for one in self.records[registration][:count]]
