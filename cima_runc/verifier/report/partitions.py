"""Each register that has changed is one registration's, and its records add up to it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace

from cima_runc.base.text import printable
from cima_runc.cpcr import register
from cima_runc.cpcr.inner import EMPTY, inner
from cima_runc.cpcr.sparse import SparseTable
from cima_runc.evidence.report import Listed, Payload, RecordsPart
from cima_runc.ml import contents
from cima_runc.ml.contents import (
    AnyContent,
    Exit,
    Measured,
    Previous,
    Register,
    ServicesRegister,
)
from cima_runc.verifier import errors
from cima_runc.verifier.checked_record import content_of, read_record
from cima_runc.verifier.kernel_line import check_line, take_line
from cima_runc.verifier.report import errors as refused
from cima_runc.verifier.report.known import Chain, Known, KnownRegister
from cima_runc.verifier.report.resync import NeedsResync
from cima_runc.verifier.steps.hints import REPORT


@dataclass(frozen=True)
class CheckedRecord:
    """A record with the digest of its content."""

    recnum: int
    digest: bytes
    content: AnyContent
    line: bytes
    """The record as JSON, for storing."""


@dataclass(frozen=True)
class RegisterChange:
    """One registration after the report."""

    register: KnownRegister
    """All records below ``register.proved.count`` are proved now, those that were held too."""
    records: tuple[CheckedRecord, ...]
    """Records that came with the report, in order; those from ``register.proved.count`` on are held
    and not proved."""
    since: int
    """Number of the first of them: what was held from here on is replaced."""


@dataclass(frozen=True)
class Partitions:
    """What the report says of the registrations."""

    changes: tuple[RegisterChange, ...]
    gone: tuple[KnownRegister, ...]


def check_partitions(
    payload: Payload, before: Known, table: SparseTable | None
) -> Partitions | NeedsResync:
    """Check slots and records; ``table`` is None where nothing is listed and nothing has changed.

    Raises:
        VerificationError: the report is refused.
    """
    if table is None:
        return Partitions((), ())
    slots = _check_slots(payload, before.registers, table)
    parts = {part.registration: part for part in payload.records}
    listed = {one.registration for one in payload.containers}
    if strangers := parts.keys() - listed:
        raise refused.SecretError(
            "records come of a registration that is not listed",
            expected="a listing with its secret",
            found=f"registration {min(strangers)}",
            hint=REPORT,
        )
    changes: list[RegisterChange] = []
    following = _Following(before.registers)
    for one in sorted(payload.containers, key=_leaves_first):
        known = before.registers.get(one.registration)
        _check_same(one, known, payload.boot_id)
        change = _change(one, known, parts.get(one.registration), payload.boot_id)
        if isinstance(change, NeedsResync):
            return change
        proved = _proved(change, one, table, following)
        following.add(proved.register)
        changes.append(proved)
    return Partitions(tuple(changes), _gone(payload, before, table, slots))


def _leaves_first(one: Listed) -> tuple[bool, int]:
    """Those with a leaf first; then later runs before earlier ones, which they prove."""
    return one.slot is None, -(one.run or 0)


def _check_slots(
    payload: Payload, known: Mapping[int, KnownRegister], table: SparseTable
) -> dict[int, int]:
    """Return the registration of each slot that is listed."""
    slots: dict[int, int] = {}
    for one in payload.containers:
        if one.slot is None:
            continue
        if one.slot in slots:
            raise _slot("two registrations are listed in one slot", one.slot)
        if table.inner(one.slot) == EMPTY:
            raise _slot("a registration is listed in a slot that is empty", one.slot)
        slots[one.slot] = one.registration
    changed = set()
    for slot, value in payload.changes:
        changed.add(slot)
        if value != EMPTY and slot not in slots:
            raise _slot("a slot has changed, and no registration is listed in it", slot)
    there = {
        one.slot: one.registration
        for one in known.values()
        if one.slot is not None and one.boot_id == payload.boot_id
    }
    for slot, number in slots.items():
        if slot not in changed and there.get(slot) != number:
            raise _slot("a slot is another registration's, and has not changed", slot)
    for one in payload.containers:
        before = known.get(one.registration)
        if before is None or before.slot is None or before.boot_id != payload.boot_id:
            continue
        if one.slot == before.slot:
            continue
        if one.slot is not None:
            raise _slot("a registration has moved to another slot", one.slot)
        if before.slot not in changed and payload.base is not None:
            raise _slot("a registration without a slot has its register still", before.slot)
    return slots


def _slot(what: str, slot: int) -> refused.SlotError:
    return refused.SlotError(what, found=f"slot {slot}", hint=REPORT)


def _gone(
    payload: Payload, before: Known, table: SparseTable, slots: Mapping[int, int]
) -> tuple[KnownRegister, ...]:
    changed = {slot for slot, _ in payload.changes}
    return tuple(
        one
        for one in before.registers.values()
        if one.slot is not None
        and one.boot_id == payload.boot_id
        and (payload.base is None or one.slot in changed)
        and (table.inner(one.slot) == EMPTY or slots.get(one.slot) != one.registration)
    )


def _check_same(one: Listed, known: KnownRegister | None, boot_id: str) -> None:
    """What never changes of a registration has not."""
    if known is None:
        if one.boot_id not in (None, boot_id) and one.slot is not None:
            raise refused.ListedError(
                "a registration of another boot is listed with a slot of this one", hint=REPORT
            )
        return
    said = (one.id, one.kind, one.owners, one.boot_id or boot_id, one.services)
    wanted = (known.id, known.kind, known.owners, known.boot_id, known.services)
    run, before = (one.line, one.run), (known.line, known.run)
    # An agent that takes over from one without lines gives them later.
    if said != wanted or (run != before and known.line is not None):
        raise refused.ListedError(
            f"registration {one.registration} is another container than before",
            expected=printable(str((*wanted, known.run))[:200]),
            found=printable(str((*said, one.run))[:200]),
            hint=REPORT,
        )
    if (known.secret is None) != (one.secret is None):
        raise refused.SecretError(
            "whether the service may read a container's records has changed",
            expected="readable" if known.secret is not None else "not readable",
            found="not readable" if known.secret is not None else "readable",
            hint=REPORT,
        )
    if one.count < known.said or (known.state == "stopped" and one.state != "stopped"):
        raise errors.RollbackError(
            f"registration {one.registration} has gone back",
            expected=f"{known.said} records or more, {known.state}",
            found=f"{one.count}, {one.state}",
            hint=REPORT,
        )


def _change(
    one: Listed, known: KnownRegister | None, part: RecordsPart | None, boot_id: str
) -> RegisterChange | NeedsResync:
    """Replay the records; nothing of them is proved here."""
    before = known.proved if known is not None else Chain()
    made = KnownRegister(
        registration=one.registration,
        boot_id=one.boot_id or boot_id,
        slot=one.slot,
        id=one.id,
        kind=one.kind,
        line=one.line,
        run=one.run,
        owners=one.owners,
        services=one.services,
        state=one.state,
        said=one.count,
        secret=one.secret,
        proved=before,
        held=known.held if known is not None else None,
    )
    if part is None:
        return RegisterChange(made, (), made.held.count if made.held else before.count)
    if one.secret is None:
        raise refused.SecretError(
            "records come that the service cannot prove: their secret is not shown",
            found=f"registration {one.registration}",
            hint=REPORT,
        )
    if made.held is not None and part.since == made.held.count:
        start = made.held
    elif part.since == before.count:
        start = before
    else:
        return NeedsResync("records")
    records, chain = _replayed(part, start, made)
    return RegisterChange(replace(made, held=chain), records, part.since)


def _replayed(
    part: RecordsPart, start: Chain, made: KnownRegister
) -> tuple[tuple[CheckedRecord, ...], Chain]:
    found = []
    count, value, previous, ended = start.count, start.cpcr, start.previous, start.ended
    late = start.late
    for raw in part.records:
        # Beside a file of the host services stands its line of the kernel's log.
        shown, kernel_line = take_line(raw) if made.kind == "dependencies" else (raw, None)
        record = read_record(shown)
        if record.recnum != count:
            kind = errors.RecordMissingError if record.recnum > count else errors.RecordOrderError
            raise kind(
                "the records are not in order",
                expected=f"record {count}",
                found=f"record {record.recnum}",
                hint=REPORT,
            )
        if record.cpcr != made.id:
            raise errors.ForeignRecordError(
                f"record {count} is of another container",
                expected=printable(made.id),
                found=printable(record.cpcr),
                hint=REPORT,
            )
        content = content_of(record)
        if kernel_line is not None:
            check_line(Measured(count, content), kernel_line)
        if count == 0:
            previous = _first(content, made)
        elif isinstance(content, Register | ServicesRegister | contents.RegisterV1):
            raise errors.RunError("a partition has a second registration", hint=REPORT)
        value = register.extend(value, record.digest)
        count += 1
        late += ended or late > 0
        ended = isinstance(content, Exit)
        line = json.dumps(raw, separators=(",", ":")).encode("ascii")
        found.append(CheckedRecord(record.recnum, record.digest, content, line))
    if count > made.said:
        raise errors.RecordCountError(
            "there are more records than the register has",
            expected=f"{made.said} records",
            found=str(count),
            hint=REPORT,
        )
    return tuple(found), Chain(count, value, previous, ended, late)


def _first(content: AnyContent, made: KnownRegister) -> Previous | None:
    """The first record is the registration that is listed; returns the run before."""
    if made.kind == "dependencies":
        fits = isinstance(content, ServicesRegister) and (
            (content.id, content.registration, content.boot_id)
            == (made.id, made.registration, made.boot_id)
        )
        previous = None
    else:
        fits = isinstance(content, contents.RegisterV1) and (
            (content.id, content.registration, content.boot_id)
            == (made.id, made.registration, made.boot_id)
        )
        if isinstance(content, Register):
            fits = fits and (content.line, content.run) == (made.line, made.run)
            fits = fits and content.dependencies == made.services
        before = content.previous if isinstance(content, Register) else None
        previous = before if isinstance(before, Previous) else None
    if not fits:
        raise refused.ListedError(
            "what is listed of a registration is not what its first record says",
            expected=f"{printable(made.id)}, registration {made.registration}",
            found=printable(str(content)[:200]),
            hint=REPORT,
        )
    return previous


def _proved(
    change: RegisterChange,
    one: Listed,
    table: SparseTable,
    following: "_Following",
) -> RegisterChange:
    """Where the records are all there, they must add up to what is bound; then they are proved."""
    made = change.register
    if made.secret is None:
        return change
    chain = made.held or made.proved
    if chain.count != made.said:
        return change
    if one.slot is not None:
        if inner(made.secret, chain.cpcr, chain.count) != table.inner(one.slot):
            raise errors.RegisterError(
                f"the records of registration {one.registration} do not add up to its register",
                expected="what is bound",
                found=f"{chain.count} records, {chain.cpcr.hex()}",
                hint=REPORT,
            )
        return replace(change, register=replace(made, proved=chain, held=None))
    previous = following.says(one.registration)
    if previous is None:
        return change
    said = (previous.registration, previous.boot_id, previous.count, previous.cpcr)
    if said != (one.registration, made.boot_id, chain.count, chain.cpcr):
        raise errors.RunError(
            "a run is not what the run after it says",
            expected=f"{previous.count} records, register {previous.cpcr.hex()}",
            found=f"{chain.count} records, register {chain.cpcr.hex()}",
            hint=REPORT,
        )
    return replace(change, register=replace(made, proved=chain, held=None))


class _Following:
    """What registrations that are proved say of the runs before them: a report may list as many
    without a slot as there is room for, and each is looked for here."""

    def __init__(self, known: Mapping[int, KnownRegister]) -> None:
        self._known: dict[int, Previous] = {}
        self._new: dict[int, Previous] = {}
        for one in known.values():
            self._put(self._known, one)

    def add(self, one: KnownRegister) -> None:
        """Heed a registration of this report, too."""
        self._put(self._new, one)

    def says(self, registration: int) -> Previous | None:
        """Return what the run after this one says of it."""
        return self._new.get(registration) or self._known.get(registration)

    def _put(self, said: dict[int, Previous], one: KnownRegister) -> None:
        previous = one.proved.previous
        if previous is not None:
            said.setdefault(previous.registration, previous)
