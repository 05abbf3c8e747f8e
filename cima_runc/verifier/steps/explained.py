"""The host's log and the firmware's add up to their PCRs, and hold what they must.

IMA's log begins with ``boot_aggregate``, a digest over the boot PCRs, which ties it to this boot.
The name of a template, and the path of a violation, are covered by nothing: only template data is
hashed, and of a violation not even that. Source: design, section 7; ima_template_lib.c and
ima_crypto.c (ima_calc_boot_aggregate) of Linux 6.1.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from cima_runc.base.text import printable
from cima_runc.cpcr import register
from cima_runc.evidence.models import HostLine
from cima_runc.evidence.request import Disclosure
from cima_runc.ml.contents import File
from cima_runc.verifier import errors
from cima_runc.verifier.boot_log import EventLogError, replay
from cima_runc.verifier.expectation import Expectation
from cima_runc.verifier.kernel_line import HostFile, is_of_another_order, read_line
from cima_runc.verifier.steps.hints import ANEW, REPORT
from cima_runc.verifier.steps.replayed import Continued, Services

_AGGREGATE = b"boot_aggregate"
_AGGREGATE_PCRS = range(10)
_VIOLATION = b"\xff" * 32

Aggregate = Literal["equal", "another", "zero", "not comparable"]
"""How ``boot_aggregate`` stands to the quoted PCRs. zero: IMA had no TPM. not comparable: of
another hash than SHA-256."""


@dataclass(frozen=True)
class HostLog:
    """The lines that add up to the host's PCR; those after them are not proved, and not here."""

    disclosure: Disclosure
    lines: int
    aggregate: Aggregate
    violations: int
    files: tuple[HostFile | None, ...]
    """What each line says, where the log is shown in full; None for one that cannot be read."""
    violated: tuple[bytes, ...]
    """Paths of the violations, where the log is shown in full, on the host's word."""


@dataclass(frozen=True)
class Explained:
    """All that evidence proves."""

    continued: Continued
    host_log: HostLog | None
    """None where it was not asked for."""
    has_boot_log: bool


def explain(continued: Continued, wanted: Expectation) -> Explained:
    """Replay the logs that were asked for."""
    return Explained(continued, _host_log(continued), _boot_log(continued, wanted))


def _host_log(continued: Continued) -> HostLog | None:
    evidence = continued.replayed.evidence
    log = evidence.host_log
    if log.disclosure == "none":
        return None
    values = continued.replayed.recalled.opened.bound.quoted.values
    value = values[log.pcr]
    extended = [_extended_with(entry) for entry in log.entries]
    proved = prefix_that_gives(extended, value)
    if proved is None:
        raise errors.HostLogError(
            f"the host's log does not add up to PCR {log.pcr}",
            expected=value.hex(),
            found=f"no such value after any of {len(log.entries)} entries",
            hint=REPORT,
        )
    stands = _aggregate(log.entries[0], values)
    entries = log.entries[:proved]
    if continued.replayed.services is not None:
        _check_lines(continued.replayed.services, frozenset(extended[:proved]))
    shown = [entry for entry in entries if isinstance(entry, HostLine)]
    in_full = log.disclosure == "full"
    violated = [_path(entry) for entry in shown if entry.violation]
    return HostLog(
        disclosure=log.disclosure,
        lines=proved,
        aggregate=stands,
        violations=sum(one == _VIOLATION for one in extended[:proved]),
        files=tuple(read_line(entry.data) for entry in shown if not entry.violation)
        if in_full
        else (),
        violated=tuple(violated) if in_full else (),
    )


def prefix_that_gives(extended: Sequence[bytes], value: bytes) -> int | None:
    """Return after how many entries, one at least, the PCR has ``value``; None if after none.

    The kernel appends to its log before it extends, and the log is read after the quote: it may
    lead the quote. Entries beyond the prefix are not proved by this quote.
    """
    replayed = register.ZERO
    for number, entry in enumerate(extended, start=1):
        replayed = hashlib.sha256(replayed + entry).digest()
        if replayed == value:
            return number
    return None


def _extended_with(entry: bytes | HostLine) -> bytes:
    if isinstance(entry, bytes):
        return entry
    return _VIOLATION if entry.violation else hashlib.sha256(entry.data).digest()


def _path(entry: HostLine) -> bytes:
    found = read_line(entry.data)
    return found.path if found is not None else b""


def _aggregate(entry: bytes | HostLine, values: Mapping[int, bytes]) -> Aggregate:
    """Compare the first line with the quoted PCRs."""
    found = None
    if isinstance(entry, HostLine) and not entry.violation:
        found = read_line(entry.data)
    if isinstance(entry, HostLine) and is_of_another_order(entry.template):
        raise errors.ForeignLogError(
            "the host's log is of a template in which no file's digest and name are first",
            expected="a template that begins with d-ng|n-ng, as all the kernel's own",
            found=printable(entry.template),
            hint="start the host's kernel with ima_template=ima-sig and without ima_template_fmt",
        )
    if found is None or found.path != _AGGREGATE:
        raise errors.ForeignLogError(
            "the host's log does not begin with boot_aggregate",
            expected="boot_aggregate",
            found=printable(found.path) if found is not None else "another line",
            hint="its beginning is missing, or it is another kernel's: do not rely on this host",
        )
    return aggregate(found, values)


def aggregate(line: HostFile, values: Mapping[int, bytes]) -> Aggregate:
    """Return how ``boot_aggregate``, as a log's first line, stands to the quoted PCRs."""
    if line.path != _AGGREGATE:
        return "another"
    if not any(line.digest):
        return "zero"
    if line.algorithm != "sha256" or len(line.digest) != 32:
        return "not comparable"
    if any(pcr not in values for pcr in _AGGREGATE_PCRS):
        return "not comparable"
    expected = hashlib.sha256(b"".join(values[pcr] for pcr in _AGGREGATE_PCRS)).digest()
    return "equal" if expected == line.digest else "another"


def _check_lines(services: Services, proved: frozenset[bytes]) -> None:
    """Each file of the host services is a line of the log as it is proved."""
    for record in services.records:
        number, content = record.measured
        if not isinstance(content, File):
            continue
        shown = f"record {number} of the host services, {printable(content.path)},"
        if record.line is None:
            raise errors.DependencyLineError(
                f"{shown} does not come with its line of the kernel's log",
                expected="a line",
                found="none",
                hint=ANEW,
            )
        if hashlib.sha256(record.line).digest() not in proved:
            raise errors.DependencyLineError(
                f"{shown} is not in the host's log as it is proved",
                expected=f"a line that extends the PCR with {_hash(record.line)}",
                found="none",
                hint=REPORT,
            )


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _boot_log(continued: Continued, wanted: Expectation) -> bool:
    evidence = continued.replayed.evidence
    values = continued.replayed.recalled.opened.bound.quoted.values
    if evidence.boot_log is None:
        return False
    try:
        replayed = replay(evidence.boot_log)
    except EventLogError as error:
        raise errors.BootLogError(error.what, hint=ANEW) from error
    for pcr in wanted.policy.boot_pcrs:
        expected = replayed.get(pcr, register.ZERO)
        if expected != values[pcr]:
            raise errors.BootLogError(
                f"the firmware's event log does not add up to PCR {pcr}",
                expected=values[pcr].hex(),
                found=expected.hex(),
                hint=REPORT,
            )
    return True
