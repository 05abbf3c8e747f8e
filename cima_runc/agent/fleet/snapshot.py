"""What a report is of: the registers as they are bound, and what of them is new to the service.

Taken in the writer's thread, and nothing changes it afterwards. Source: fleet, section 3.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from cima_runc.agent.ledger import Bound
from cima_runc.agent.writer import Writer
from cima_runc.cpcr.inner import EMPTY
from cima_runc.ml.store import ContainerNote


@dataclass(frozen=True)
class Listing:
    """A registration that the report lists."""

    note: ContainerNote
    slot: int | None
    secret: bytes | None
    """None: the service may not read its records."""
    count: int
    earlier: tuple[int, ...] = ()
    """Registrations of earlier runs of its line that are kept."""


@dataclass(frozen=True)
class Sent:
    """What the service has, as far as it is known."""

    base: tuple[bytes, int] | None
    """Its table, and the table's mark here."""
    records: Mapping[int, int]
    """How many records it has, proved or not, by registration."""
    states: Mapping[int, str]
    """Which state of each registration it knows."""


@dataclass(frozen=True)
class Snapshot:
    """The registers at one bind."""

    bound: Bound
    mark: int
    """The table's."""
    slots: int
    base: bytes | None
    changes: tuple[tuple[int, bytes], ...]
    listings: tuple[Listing, ...]
    present: frozenset[int]
    """Registrations that have a register."""


def is_readable(note: ContainerNote, service_key: str | None) -> bool:
    """Whether the service may read a container's records: it has no owner's key, or the service's
    is among them."""
    return not note.owners or (service_key is not None and service_key in note.owners)


def take_snapshot(writer: Writer, sent: Sent, service_key: str | None) -> Snapshot:
    """Bind where something has changed, and return what the report is of.

    Raises:
        OSError, TpmError: as :meth:`Writer.bind_for_report`.
    """
    bound = writer.bind_for_report()
    since = None if sent.base is None else sent.base[1]
    changes = tuple(
        (slot, value)
        for slot, value in writer.changes(since)
        if since is not None or value != EMPTY
    )
    changed = {slot for slot, _ in changes}
    listings = []
    present = set()
    for one in writer.containers:
        number, note, count = one.number, one.note, one.partition.count
        present.add(number)
        readable = is_readable(note, service_key)
        if (
            note.slot in changed
            or (readable and sent.records.get(number, 0) < count)
            or sent.states.get(number) != note.state
        ):
            secret = one.secret if readable else None
            earlier = writer.runs_of(note)[:-1] if (note.run or 0) > 1 else ()
            listings.append(Listing(note, note.slot, secret, count, earlier))
    return Snapshot(
        bound=bound,
        mark=writer.change_mark,
        slots=writer.slots,
        base=None if sent.base is None else sent.base[0],
        changes=changes,
        listings=tuple(listings),
        present=frozenset(present),
    )
