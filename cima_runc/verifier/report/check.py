"""A report is what the host's TPM vouches for, and goes on from what is kept of the host.

The order of the checks: the key, the signature, what was quoted and for whom, the TPM's counters;
from here on the report is known to be the host's, and may be told that it goes on from something
else. Then the bind, the slots, the logs, the records. Source: fleet, section 3; design, 6 and 7.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from cima_runc.cpcr import register
from cima_runc.cpcr.bind import Bind, bind_digest
from cima_runc.cpcr.sparse import SparseTable
from cima_runc.cpcr.status import Status
from cima_runc.cpcr.table import host_digest
from cima_runc.cpcr.tree import root_from_path
from cima_runc.evidence.models import HostLine
from cima_runc.evidence.report import Payload, Report
from cima_runc.evidence.report_nonce import IssuedNonce
from cima_runc.evidence.request import Asker, leaf
from cima_runc.tpm.structures import PublicArea, QuoteBody, parse_public
from cima_runc.verifier import boot_log, errors
from cima_runc.verifier.errors import VerificationError
from cima_runc.verifier.host_log import extended_with
from cima_runc.verifier.report import errors as refused
from cima_runc.verifier.report.known import Counters, Known, KnownLog, KnownRegister
from cima_runc.verifier.report.partitions import RegisterChange, check_partitions
from cima_runc.verifier.report.resync import NeedsResync
from cima_runc.verifier.signed_quote import signed_quote
from cima_runc.verifier.steps.hints import ANEW, CLEARED, REPORT

EventKind = Literal["boot", "hibernation", "let-go", "foreign", "gap"]
"""boot: the host has booted. hibernation: the TPM has started again in one boot. let-go: a register
was given up before its container's end was proved. foreign, gap: the status counts more."""


@dataclass(frozen=True)
class ReportPolicy:
    """Which PCRs a report must show."""

    pcr: int = 12
    """The binding PCR."""
    host_pcr: int = 10
    """The PCR of the host's log."""
    boot_pcrs: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 14)
    require_safe_clock: bool = True
    """Whether a clock that the TPM does not vouch for (after a power cut) is refused."""

    def selection(self, *, host_log: bool) -> tuple[int, ...]:
        """Return the PCRs that must be quoted."""
        shown = {*self.boot_pcrs, self.pcr} | ({self.host_pcr} if host_log else set())
        return tuple(sorted(shown))


@dataclass(frozen=True)
class ReportEvent:
    """Something that a person may want to know, though the report was accepted."""

    kind: EventKind
    what: str
    registration: int | None = None


@dataclass(frozen=True)
class OfHost:
    """A report that its host's TPM vouches for; what it says and goes on from is not looked at."""

    report: Report
    nonce: IssuedNonce
    values: dict[int, bytes]
    """Of the quoted PCRs."""
    counters: Counters


@dataclass(frozen=True)
class Wanted:
    """Which of the host's registers a report must be compared with."""

    registrations: frozenset[int]
    slots: frozenset[int]
    """Those of this boot that are in these slots."""
    followed: frozenset[int]
    """Those whose ``proved.previous`` is one of these registrations."""
    all_of_boot: bool
    """All of the boot that is kept."""


@dataclass(frozen=True)
class Proved:
    """A report that is the host's, and what is kept of the host from now on."""

    counters: Counters
    boot_id: str
    new_boot: bool
    table: SparseTable | None
    """The table where it is another now; None: as it was."""
    table_digest: bytes
    status: Status
    pcrs: dict[int, bytes]
    host_log: KnownLog | None
    """None: it was not shown."""
    host_entries: tuple[bytes | HostLine, ...]
    """Entries of the host's log that are newly proved."""
    boot_log: bytes | None
    """The firmware's event log, which adds up to the boot PCRs."""
    registers: tuple[RegisterChange, ...]
    gone: tuple[KnownRegister, ...]
    """Those whose slot is empty now, or another's."""
    events: tuple[ReportEvent, ...]
    quoted_at: float
    """When the nonce was made, seconds since 1970."""


def wanted(report: Report) -> Wanted:
    """Return which registers to look up before :func:`check_report`."""
    payload = report.payload
    listed = payload.containers
    return Wanted(
        registrations=frozenset(one.registration for one in listed)
        | frozenset(part.registration for part in payload.records),
        slots=frozenset(slot for slot, _ in payload.changes)
        | frozenset(one.slot for one in listed if one.slot is not None),
        followed=frozenset(one.registration for one in listed if one.slot is None),
        all_of_boot=payload.base is None,
    )


def check_report(
    report: Report, known: Known, nonce: IssuedNonce, policy: ReportPolicy | None = None
) -> Proved | NeedsResync:
    """Check a report against what is kept of its host.

    Returns what is kept from now on; or, where the report is the host's and goes on from something
    that is not kept, what must be told to it.

    Raises:
        VerificationError: it is refused; the class names the reason.
    """
    policy = policy or ReportPolicy()
    return go_on(of_host(report, known.ak, nonce, policy), known, policy)


def of_host(report: Report, ak: bytes, nonce: IssuedNonce, policy: ReportPolicy) -> OfHost:
    """Check that a report is the host's with this attestation key (TPMT_PUBLIC), for ``nonce``.

    Before anything is looked up for it: whoever has a nonce can send what costs much to compare.

    Raises:
        VerificationError: it is refused; the class names the reason.
    """
    body = _signed(report, ak)
    values = _quoted(report, body, nonce, policy)
    clock = body.clock
    counters = Counters(clock.reset_count, clock.restart_count, clock.clock)
    return OfHost(report, nonce, values, counters)


def go_on(found: OfHost, known: Known, policy: ReportPolicy) -> Proved | NeedsResync:
    """Check what a report of the host says, against what is kept of it; as :func:`check_report`."""
    report, values, counters = found.report, found.values, found.counters
    _check_counters(counters, known.counters)
    new_boot = _boot(report.payload, counters, known)
    payload = report.payload
    # Of the boot before, records may still come; its table, status and log are gone.
    before = Known(ak=known.ak, registers=known.registers) if new_boot else known
    if payload.base is not None and (before.table is None or payload.base != before.table.digest):
        return NeedsResync("base")
    log = report.proof.host_log
    known_log = before.host_log or KnownLog(0, register.ZERO)
    if log is not None and log.from_ != known_log.lines:
        return NeedsResync("host_log")
    table, table_digest = _table(payload, before)
    _bound(payload, values[policy.pcr], table_digest)
    events = [*_boot_events(new_boot, counters, known), *_status(payload.status, before.status)]
    partitions = check_partitions(payload, before, table)
    if isinstance(partitions, NeedsResync):
        return partitions
    host_log, entries = _host_log(report, known_log, values, policy)
    _boot_log(report, values, policy)
    changed = {change.register.registration: change.register for change in partitions.changes}
    events += [
        ReportEvent(
            "let-go",
            "its register was given up before the container's end was proved",
            one.registration,
        )
        for one in partitions.gone
        if _is_early(changed.get(one.registration, one))
    ]
    return Proved(
        counters=counters,
        boot_id=payload.boot_id,
        new_boot=new_boot,
        table=table,
        table_digest=table_digest,
        status=payload.status,
        pcrs=values,
        host_log=host_log,
        host_entries=entries,
        boot_log=report.proof.boot_log,
        registers=partitions.changes,
        gone=partitions.gone,
        events=tuple(events),
        quoted_at=found.nonce.made,
    )


def is_of_host(report: Report, ak: bytes, nonce: IssuedNonce) -> bool:
    """Whether the host with this key (TPMT_PUBLIC) has signed this report, whatever it says."""
    try:
        body = _signed(report, ak)
    except VerificationError:
        return False
    payload = report.payload
    is_asked = (payload.nonce, payload.ak) == (nonce.value, nonce.ak)
    return is_asked and _root(report) == body.extra_data


def _root(report: Report) -> bytes:
    place = report.proof.aggregation
    return root_from_path(leaf(Asker.HOST, report.claim()), place.index, place.path)


# -- whose it is ----------------------------------------------------------------------------------


@lru_cache(maxsize=16_384)
def _public(data: bytes) -> PublicArea:
    return parse_public(data)


def _signed(report: Report, ak: bytes) -> QuoteBody:
    public = _public(ak)
    if report.payload.ak != public.name or report.proof.ak.public != ak:
        raise refused.AkNameError(
            "the report is of another attestation key than the one enrolled",
            expected=public.name.hex(),
            found=report.payload.ak.hex(),
            hint="enrol the host again if its TPM was cleared or changed",
        )
    return signed_quote(report.proof.quote, public)


def _quoted(
    report: Report, body: QuoteBody, nonce: IssuedNonce, policy: ReportPolicy
) -> dict[int, bytes]:
    payload, proof = report.payload, report.proof
    if payload.nonce != nonce.value or payload.ak != nonce.ak:
        raise errors.NonceError(
            "the report was made with another nonce",
            expected=nonce.value.hex(),
            found=payload.nonce.hex(),
            hint=ANEW,
        )
    selection = policy.selection(host_log=proof.host_log is not None)
    if body.pcrs != selection or set(proof.quote.pcrs) != {str(pcr) for pcr in selection}:
        raise errors.PcrSelectionError(
            "other PCRs were quoted than a report must show",
            expected=_numbers(selection),
            found=f"quoted {_numbers(body.pcrs)}, {len(proof.quote.pcrs)} values",
            hint="the agent's settings name other PCRs than the service's",
        )
    root = _root(report)
    if root != body.extra_data:
        raise errors.QualifyingDataError(
            "the quote was not made for this report",
            expected=root.hex(),
            found=body.extra_data.hex(),
            hint=ANEW,
        )
    values = {pcr: proof.quote.pcrs[str(pcr)] for pcr in selection}
    digest = hashlib.sha256(b"".join(values.values())).digest()
    if digest != body.pcr_digest:
        raise errors.PcrValuesError(
            "the PCR values are not those that were quoted",
            expected=body.pcr_digest.hex(),
            found=digest.hex(),
            hint=REPORT,
        )
    if policy.require_safe_clock and not body.clock.safe:
        raise errors.ClockUnsafeError(
            "the TPM does not vouch for its clock",
            expected="safe",
            found="not safe: the host lost power without a shutdown",
            hint="it is safe again within some seventy minutes; the service's require_safe_clock "
            "says whether that is waited for",
        )
    return values


def _check_counters(found: Counters, last: Counters | None) -> None:
    """The TPM's counters have gone on."""
    if last is None or found > last:
        return
    if found == last:
        raise refused.OldReportError(
            "the quote is that of the last report",
            expected=f"one newer than {_shown(last)}",
            found=_shown(found),
            hint=ANEW,
        )
    for kind, what, one, other in (
        (errors.ResetCountError, "count of resets", found.reset_count, last.reset_count),
        (errors.RestartCountError, "count of restarts", found.restart_count, last.restart_count),
    ):
        if one < other:
            raise kind(
                f"the TPM's {what} has gone back",
                expected=f"{other} or more",
                found=str(one),
                hint=CLEARED,
            )
    raise errors.ClockError(
        "the TPM's clock has gone back: the report is older than the last, or of another TPM",
        expected=f"more than {last.clock} ms",
        found=f"{found.clock} ms",
        hint=CLEARED,
    )


def _boot(payload: Payload, counters: Counters, known: Known) -> bool:
    """Whether this is the first report of a boot."""
    if known.boot_id is None or known.counters is None:
        return True
    if payload.boot_id == known.boot_id:
        return False
    if counters.reset_count <= known.counters.reset_count:
        raise refused.BootIdError(
            "the boot is another, and the TPM was not reset since the boot before",
            expected=f"boot {known.boot_id}, or more than {known.counters.reset_count} resets",
            found=f"boot {payload.boot_id}, {counters.reset_count} resets",
            hint="two hosts with one attestation key: do not rely on either",
        )
    return True


# -- what it binds --------------------------------------------------------------------------------


def _table(payload: Payload, before: Known) -> tuple[SparseTable | None, bytes]:
    """Return the table, None where it is as it was, and its digest."""
    if before.table is not None and payload.slots < before.table.slots:
        raise refused.SlotsError(
            "the table has fewer slots than before",
            expected=f"{before.table.slots} or more, in one boot",
            found=str(payload.slots),
            hint=REPORT,
        )
    if payload.base is None:
        table = SparseTable(payload.slots, dict(payload.changes))
        return table, table.digest
    assert before.table is not None
    is_same = payload.slots == before.table.slots and not payload.changes
    if is_same and not payload.containers and not payload.records:
        return None, before.table.digest
    table = before.table.load().changed(payload.slots, payload.changes)
    return table, table.digest


def _bound(payload: Payload, value: bytes, table: bytes) -> None:
    host = host_digest(payload.hostkey, table)
    digest = bind_digest(payload.status.digest(), host, payload.root)
    expected = Bind(payload.history, digest).expected
    if value != expected:
        raise errors.BindingError(
            "the binding PCR is not the history extended with status, table and root",
            expected=expected.hex(),
            found=value.hex(),
            hint=REPORT,
        )


def _boot_events(new_boot: bool, counters: Counters, known: Known) -> list[ReportEvent]:
    last = known.counters
    if new_boot:
        return [ReportEvent("boot", "the host has booted")] if last is not None else []
    assert last is not None
    started = (counters.reset_count, counters.restart_count)
    if started != (last.reset_count, last.restart_count):
        return [ReportEvent("hibernation", "the TPM has started again in the same boot")]
    return []


def _status(status: Status, known: Status | None) -> list[ReportEvent]:
    """The status has not gone back in this boot."""
    if known is None:
        return []
    is_lost = status.initial is None and status.foreign.count > known.foreign.count
    if (
        status.foreign.count < known.foreign.count
        or status.gaps.count < known.gaps.count
        or (status.initial != known.initial and not is_lost)
    ):
        raise errors.StatusError(
            "what the host says of this boot's troubles has gone back",
            expected=f"{known.foreign.count} foreign extends and {known.gaps.count} gaps or more",
            found=f"{status.foreign.count} and {status.gaps.count}",
            hint=REPORT,
        )
    events = []
    if (more := status.foreign.count - known.foreign.count) > 0:
        what = f"the binding PCR was not as the host had made it, {more} times more"
        events.append(ReportEvent("foreign", what))
    if (more := status.gaps.count - known.gaps.count) > 0:
        what = f"for a time the host could not write or bind records, {more} times more"
        events.append(ReportEvent("gap", what))
    return events


def _is_early(now: KnownRegister) -> bool:
    """Whether a register that is given up is one whose container's end is not proved."""
    if now.kind != "container":
        return False
    return now.state != "stopped" if now.secret is None else not (now.is_whole and now.proved.ended)


# -- the logs -------------------------------------------------------------------------------------


def _host_log(
    report: Report, known: KnownLog, values: dict[int, bytes], policy: ReportPolicy
) -> tuple[KnownLog | None, tuple[bytes | HostLine, ...]]:
    log = report.proof.host_log
    if log is None:
        return None, ()
    wanted_value = values[policy.host_pcr]
    value = known.value
    proved = 0 if value == wanted_value else None
    for number, entry in enumerate(log.entries, start=1):
        if proved is not None:
            break
        value = register.extend(value, extended_with(entry))
        if value == wanted_value:
            proved = number
    if proved is None or known.lines + proved == 0:
        raise errors.HostLogError(
            f"the host's log does not add up to PCR {policy.host_pcr}",
            expected=wanted_value.hex(),
            found=f"no such value after {known.lines} entries and any of {len(log.entries)} more",
            hint=REPORT,
        )
    return KnownLog(known.lines + proved, wanted_value), log.entries[:proved]


def _boot_log(report: Report, values: dict[int, bytes], policy: ReportPolicy) -> None:
    raw = report.proof.boot_log
    if raw is None:
        return
    try:
        replayed = boot_log.replay(raw)
    except boot_log.EventLogError as error:
        raise errors.BootLogError(error.what, hint=ANEW) from error
    for pcr in policy.boot_pcrs:
        expected = replayed.get(pcr, register.ZERO)
        if expected != values[pcr]:
            raise errors.BootLogError(
                f"the firmware's event log does not add up to PCR {pcr}",
                expected=values[pcr].hex(),
                found=expected.hex(),
                hint=REPORT,
            )


def _numbers(pcrs: Sequence[int]) -> str:
    return " ".join(map(str, pcrs)) or "none"


def _shown(counters: Counters) -> str:
    return f"{counters.reset_count}.{counters.restart_count}.{counters.clock}"
