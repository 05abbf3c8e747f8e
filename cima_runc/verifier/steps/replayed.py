"""The records of every run are what was bound, and the runs chain up to each other."""

import hashlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from cima_runc.base.text import printable
from cima_runc.cpcr import register
from cima_runc.cpcr.blinded import blinded_leaf
from cima_runc.cpcr.inner import inner
from cima_runc.cpcr.status import Status
from cima_runc.evidence.models import Evidence, RunPart, ServicesPart
from cima_runc.ml.contents import (
    Adopted,
    AnyContent,
    Exit,
    File,
    Measured,
    Previous,
    Register,
    RegisterV1,
    ServicesRegister,
)
from cima_runc.verifier import errors
from cima_runc.verifier.checked_record import content_of, file_at_once, read_record
from cima_runc.verifier.kernel_line import check_line, take_line
from cima_runc.verifier.state import Remembered, RememberedHost
from cima_runc.verifier.steps.bound import check_path
from cima_runc.verifier.steps.hints import ANEW, REPORT, WHOLE
from cima_runc.verifier.steps.opened import Recalled

Before = Previous | Literal["lost"] | None
"""What a run says of the one before it."""


@dataclass(frozen=True)
class Run:
    """One run of the line, its records proved."""

    number: int
    id: str
    """The container that it was."""
    registration: int
    boot_id: str
    dependencies: int | None
    """Registration of the host services that it relies on."""
    previous: Before
    since: int
    """Number of the first record here."""
    records: tuple[Measured, ...]
    count: int
    """Records until now; those before ``since`` were at an earlier time."""
    cpcr: bytes
    """The register after them."""
    ended: str | None
    """The reason of its ``exit``; None where there is none."""
    after_exit: int
    """Records that follow its ``exit``."""
    watched: bytes | None
    """The register after as many records as are remembered of it."""
    secret: bytes
    """What its environment's values are hidden with, 32 bytes."""

    @property
    def as_previous(self) -> Previous:
        """What the next run must say of this one."""
        return Previous(
            run=self.number,
            boot_id=self.boot_id,
            registration=self.registration,
            count=self.count,
            cpcr=self.cpcr,
            reason=self.ended,
        )


@dataclass(frozen=True)
class ServiceRecord:
    """A record of the host services."""

    measured: Measured
    line: bytes | None
    """Template data of its line in the kernel's log."""


@dataclass(frozen=True)
class Services:
    """The partition of the host services that the container relies on, its records proved."""

    register: ServicesRegister
    records: tuple[ServiceRecord, ...]

    @property
    def measured(self) -> tuple[Measured, ...]:
        """The records as rules look at them."""
        return tuple(record.measured for record in self.records)


@dataclass(frozen=True)
class Replayed:
    """All records, each of them proved to be what was bound or what a later run vouches for."""

    recalled: Recalled
    runs: tuple[Run, ...]
    """Oldest first; the last one has the leaf."""
    inner: bytes
    """The last run's register, masked."""
    services: Services | None

    @property
    def evidence(self) -> Evidence:
        """The evidence."""
        return self.recalled.opened.evidence

    @property
    def last(self) -> Run:
        """The run with the leaf."""
        return self.runs[-1]


Standing = Literal["new", "continues", "gap", "forgotten"]
"""How a line stands to what is remembered. new: nothing is. continues: the remembered run is on the
chain, as it was. gap: the host does not show all that came since. forgotten: the host tells of the
line as if what is remembered had not been."""


@dataclass(frozen=True)
class Continued:
    """Nothing that is remembered has gone back."""

    replayed: Replayed
    standing: Standing
    same_boot: bool
    """Whether what is remembered of the line is of the same boot of the host."""


def replay(recalled: Recalled) -> Replayed:
    """The leaf follows from blind, secret, register and count; every record from its content."""
    part, evidence = recalled.opened.part, recalled.opened.evidence
    runs = tuple(_run(recalled, one, is_first=not at) for at, one in enumerate(part.runs))
    last = runs[-1]
    if last.id != evidence.container:
        raise errors.RunError(
            "the last run is of another container",
            expected=printable(evidence.container),
            found=printable(last.id),
            hint=REPORT,
        )
    secret = part.runs[-1].secret
    value = _Value(last.cpcr, last.count)
    said = _Value(part.cpcr, part.count)
    masked = _check_leaf(value, said, secret, part.blind, evidence.binding.leaf)
    for before, after in itertools.pairwise(runs):
        if after.previous != before.as_previous:
            raise errors.RunError(
                f"run {after.number} does not follow on run {before.number}",
                expected=_described(before.as_previous),
                found=_described(after.previous),
                hint=REPORT,
            )
    services = _services(part.services, evidence.binding.root, last.dependencies)
    return Replayed(recalled, runs, masked, services)


def continue_remembered(replayed: Replayed) -> Continued:
    """Neither the line nor what the host says of its boot has gone back."""
    remembered, host = replayed.recalled.remembered, replayed.recalled.host
    for known in (host, remembered):
        if known is not None and _is_later(replayed, known):
            _check_status(replayed.evidence.binding.status, known)
    if remembered is None:
        return Continued(replayed, "new", same_boot=False)
    same_boot = replayed.last.boot_id == remembered.boot_id
    return Continued(replayed, _standing(replayed.runs, remembered), same_boot)


def _is_later(replayed: Replayed, known: RememberedHost) -> bool:
    """Whether this is of the boot that is remembered, and no earlier: evidence of two containers
    may be verified in another order than it was made in.

    A boot is told by its id. Hibernation resets the TPM in the midst of one.
    """
    clock = replayed.recalled.opened.bound.quoted.clock
    counters = (clock.reset_count, clock.restart_count, clock.clock)
    return replayed.last.boot_id == known.boot_id and counters >= known.counters


def _standing(runs: Sequence[Run], remembered: Remembered) -> Standing:
    for run in runs:
        if (run.boot_id, run.registration) == (remembered.boot_id, remembered.registration):
            _check_known(run, remembered)
            return "continues"
    first, last = runs[0], runs[-1]
    if last.registration in remembered.earlier:
        raise errors.RollbackError(
            "an earlier run of the container's line is shown",
            expected=f"run {remembered.run} or a later one",
            found=f"run {last.number}, registration {last.registration}",
            hint=REPORT,
        )
    before = first.previous
    if isinstance(before, Previous) and first.number > remembered.run:
        if (before.boot_id, before.registration) == (remembered.boot_id, remembered.registration):
            return _vouched(before, remembered)
        if before.run > remembered.run:
            return "gap"
    return "forgotten"


def _vouched(before: Previous, remembered: Remembered) -> Standing:
    """The oldest run that is shown says what the remembered one, which is not, had come to."""
    same = (before.count, before.cpcr) == (remembered.count, remembered.cpcr)
    if before.run != remembered.run or not (same or before.count > remembered.count):
        raise errors.RollbackError(
            "the run before does not continue what is remembered of it",
            expected=f"{remembered.cpcr.hex()} after {remembered.count} records",
            found=f"{before.cpcr.hex()} after {before.count} records",
            hint=REPORT,
        )
    return "continues" if same and remembered.ended else "gap"


def _check_known(run: Run, remembered: Remembered) -> None:
    if run.number != remembered.run or run.watched != remembered.cpcr:
        raise errors.RollbackError(
            "the container's records do not continue those that are remembered",
            expected=f"{remembered.cpcr.hex()} after {remembered.count} records",
            found=run.watched.hex() if run.watched else f"{run.count} records",
            hint=REPORT,
        )


def _check_status(status: Status, remembered: RememberedHost) -> None:
    """The counts of this boot have not gone back, and the first value has not changed."""
    for name, shown, known in (
        ("foreign", status.foreign.count, remembered.foreign),
        ("gaps", status.gaps.count, remembered.gaps),
    ):
        if shown < known:
            raise errors.StatusError(
                f"the count of {name} of this boot has gone back",
                expected=f"{known} or more",
                found=str(shown),
                hint=REPORT,
            )
    if status.initial == remembered.initial:
        return
    is_lost = status.initial is None and status.foreign.count > remembered.foreign
    if not is_lost:
        raise errors.StatusError(
            "the binding PCR's first value of this boot is another",
            expected=_hex(remembered.initial),
            found=_hex(status.initial),
            hint=REPORT,
        )


def _run(recalled: Recalled, part: RunPart, *, is_first: bool) -> Run:
    remembered = recalled.remembered
    start = register.ZERO
    continued = None
    if part.since:
        continued = _continued(recalled, part, is_first=is_first)
        start = continued.cpcr
    watch = None
    if remembered is not None and part.registration == remembered.registration:
        watch = remembered.count
    records, value, watched = _records(part.records, part.since, part.id, start, watch)
    told = tuple(one for one in records if type(one.content) is not File)
    count = part.since + len(records)
    ended, after_exit = None, 0
    for number, content in told:
        if isinstance(content, Exit):
            ended, after_exit = content.reason, count - number - 1
            break
    shown = _Shown(records, told, count, value, ended, after_exit, watched)
    if continued is not None:
        if continued.ended:
            shown = shown._replace(ended=continued.ended, after_exit=len(records))
        if any(isinstance(one.content, RegisterV1 | Adopted) for one in told):
            raise errors.RunError("a run is registered twice", hint=REPORT)
        return _run_of(part, shown, continued.boot_id, continued.dependencies, None)
    return _registered(recalled, part, shown)


class _Shown(NamedTuple):
    records: tuple[Measured, ...]
    told: tuple[Measured, ...]
    """Those that are of no file."""
    until: int
    cpcr: bytes
    ended: str | None
    after_exit: int
    watched: bytes | None


def _run_of(
    part: RunPart, shown: _Shown, boot_id: str, dependencies: int | None, previous: Before
) -> Run:
    return Run(
        number=part.run,
        id=part.id,
        registration=part.registration,
        boot_id=boot_id,
        dependencies=dependencies,
        previous=previous,
        since=part.since,
        records=shown.records,
        count=shown.until,
        cpcr=shown.cpcr,
        ended=shown.ended,
        after_exit=shown.after_exit,
        watched=shown.watched,
        secret=part.secret,
    )


def _continued(recalled: Recalled, part: RunPart, *, is_first: bool) -> Remembered:
    """Return what records from ``part.since`` on continue.

    Raises:
        NotRememberedError, RebootedError: there is nothing that they could continue.
        RunError: what they continue was another container's.
    """
    remembered = recalled.remembered
    begins = (part.run, part.registration, part.since)
    if remembered is None or not is_first or begins != remembered.place:
        raise errors.NotRememberedError(
            f"the records of run {part.run} begin at record {part.since}",
            expected=f"record {remembered.count} of run {remembered.run}, or all"
            if remembered
            else "all records",
            found=f"records from {part.since} on",
            hint=WHOLE,
        )
    if part.id != remembered.container:
        raise errors.RunError(
            "a run that is remembered goes on as another container's",
            expected=printable(remembered.container),
            found=printable(part.id),
            hint=REPORT,
        )
    if not recalled.same_start:
        raise errors.RebootedError(
            "the TPM has started again since the remembered evidence",
            expected=f"resetCount {remembered.reset_count} and {remembered.restart_count} restarts",
            found="higher ones",
            hint=WHOLE,
        )
    return remembered


def _registered(recalled: Recalled, part: RunPart, shown: _Shown) -> Run:
    """Return a run that is shown from its first record on, which says whose it is."""
    first = shown.records[0].content if shown.records else None
    line, number, previous = None, None, None
    adoptions = [one.content for one in shown.told if isinstance(one.content, Adopted)]
    if isinstance(first, Register):
        line, number, previous = first.line, first.run, first.previous
        if adoptions:
            raise errors.RunError("a run that has a line was adopted", hint=REPORT)
    elif isinstance(first, RegisterV1) and len(adoptions) == 1:
        (adopted,) = adoptions
        line, number, previous = adopted.line, adopted.run, adopted.previous
    registers = [one for one in shown.told if isinstance(one.content, RegisterV1)]
    if not isinstance(first, RegisterV1) or line is None or number is None or len(registers) != 1:
        raise errors.RunError(
            "the first record of a run is not its registration",
            expected=f"one record register, first, of {printable(part.id)}",
            found=f"{len(registers)} of them, {len(adoptions)} adopted",
            hint=REPORT,
        )
    said = (first.id, first.registration, line, number)
    wanted = (part.id, part.registration, recalled.opened.part.line, part.run)
    if said != wanted:
        raise errors.RunError(
            "a run is of another container, registration, line or number than its first record",
            expected=_words(wanted),
            found=_words(said),
            hint=REPORT,
        )
    return _run_of(part, shown, first.boot_id, first.dependencies, previous)


class _Value(NamedTuple):
    """A register."""

    cpcr: bytes
    records: int


def _check_leaf(found: _Value, said: _Value, secret: bytes, blind: bytes, leaf: bytes) -> bytes:
    """The register is the one that was bound; returns it masked."""
    if found.records != said.records:
        raise errors.RecordCountError(
            "there are not as many records as were bound",
            expected=f"{said.records} records",
            found=str(found.records),
            hint=REPORT,
        )
    if found.cpcr != said.cpcr:
        raise errors.RegisterError(
            "the records do not add up to the register",
            expected=said.cpcr.hex(),
            found=found.cpcr.hex(),
            hint=REPORT,
        )
    masked = inner(secret, found.cpcr, found.records)
    made = blinded_leaf(blind, masked)
    if made != leaf:
        raise errors.LeafError(
            "blind, secret, register and count do not give the leaf that was bound",
            expected=leaf.hex(),
            found=made.hex(),
            hint=REPORT,
        )
    return masked


def _services(part: ServicesPart | None, root: bytes, named: int | None) -> Services | None:
    """The host services are those that the last run names, and bound by the same root."""
    if part is None or named is None:
        if part is None and named is None:
            return None
        raise errors.DependenciesError(
            "the host services that the container's registration names are not those shown",
            expected=str(named),
            found="none" if part is None else str(part.registration),
            hint=ANEW,
        )
    check_path(part.leaf, part.slot, part.path, root, error=errors.DependenciesError)
    name = f"dependencies:{named}"
    try:
        lines = [take_line(value) for value in part.records]
        records, value, _ = _records([value for value, _ in lines], 0, name, register.ZERO, None)
        said = _Value(part.cpcr, part.count)
        _check_leaf(_Value(value, len(records)), said, part.secret, part.blind, part.leaf)
        for record, (_, line) in zip(records, lines, strict=True):
            if line is not None:
                check_line(record, line)
    except (errors.RecordTypeError, errors.RecordShapeError, errors.DependencyLineError):
        raise
    except errors.VerificationError as error:
        raise errors.DependenciesError(
            f"the host services: {error.what}",
            expected=error.expected,
            found=error.found,
            hint=error.hint,
        ) from error
    first = records[0].content if records else None
    registers = sum(isinstance(one.content, ServicesRegister) for one in records)
    if (
        not isinstance(first, ServicesRegister)
        or registers != 1
        or {
            part.registration,
            first.registration,
        }
        != {named}
        or first.id != name
    ):
        raise errors.DependenciesError(
            "the host services are not those that the container's registration names",
            expected=name,
            found=printable(first.id) if isinstance(first, ServicesRegister) else "no registration",
            hint=REPORT,
        )
    return Services(
        first,
        tuple(ServiceRecord(one, line) for one, (_, line) in zip(records, lines, strict=True)),
    )


def _records(
    values: Sequence[Any], since: int, name: str, start: bytes, watch: int | None
) -> tuple[tuple[Measured, ...], bytes, bytes | None]:
    """Return records in order, each with the digest of its content, and the register after them.

    ``start`` is the register before the first of them, ``name`` what they must be named after;
    ``watch`` the count after which the register's value is wanted too.
    """
    found: list[Measured] = []
    content: AnyContent
    value, expected = start, since
    watched = value if watch == since else None
    sha256 = hashlib.sha256
    for raw in values:
        usual = file_at_once(raw, expected, name)
        if usual is not None:
            content, digest = usual
        else:
            content, digest = _content(values, since, expected, name)
        found.append(Measured(expected, content))
        value = sha256(value + digest).digest()
        expected += 1
        if expected == watch:
            watched = value
    return tuple(found), value, watched


def _content(
    values: Sequence[Any], since: int, expected: int, name: str
) -> tuple[AnyContent, bytes]:
    """Return the content and the digest of a record, or say what is wrong with it."""
    record = read_record(values[expected - since])
    if record.recnum != expected:
        raise _disorder(values, since, expected, record.recnum)
    if record.cpcr != name:
        raise errors.ForeignRecordError(
            f"record {expected} is of another container",
            expected=printable(name),
            found=printable(record.cpcr),
            hint=REPORT,
        )
    return content_of(record), record.digest


def _disorder(
    values: Sequence[Any], since: int, expected: int, found: int
) -> errors.VerificationError:
    rest = values[expected - since :]
    later = [value.get("recnum") for value in rest if isinstance(value, dict)]
    kind: Callable[..., errors.VerificationError]
    if since <= found < expected:
        kind, what = errors.RecordRepeatedError, "stands there twice"
    elif expected in later:
        kind, what = errors.RecordOrderError, "is out of order"
    else:
        kind, what = errors.RecordMissingError, f"follows where {expected} is missing"
    return kind(
        f"record {found} {what}",
        expected=f"record {expected}",
        found=f"record {found}",
        hint=REPORT,
    )


def _described(before: Before) -> str:
    if not isinstance(before, Previous):
        return "no run before" if before is None else "a run that is lost"
    return (
        f"run {before.run}, registration {before.registration}, {before.count} records, "
        f"register {before.cpcr.hex()}, ended: {printable(before.reason or 'not written down')}"
    )


def _words(values: tuple[str, int, bytes, int]) -> str:
    name, registration, line, run = values
    return f"{printable(name)}, registration {registration}, line {line.hex()}, run {run}"


def _hex(value: bytes | None) -> str:
    return "none" if value is None else value.hex()
