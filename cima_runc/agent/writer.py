"""The writer: all that changes a container's records, its note or its register goes through it.

It alone holds the core and the ledger, so a record that the core makes is always queued for the
disk, and what is forgotten is forgotten everywhere. One thread uses it (:mod:`.rooms`).
"""

import logging
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

from cima_runc.agent.binding_pcr import BindingPcr
from cima_runc.agent.core import Core, EndedError
from cima_runc.agent.index import Container, lives
from cima_runc.agent.journald import about
from cima_runc.agent.ledger import Bound, Ledger, Trouble
from cima_runc.agent.runs import NextRun, Runs
from cima_runc.base import clock, limits
from cima_runc.base.errors import CimaError
from cima_runc.cpcr.status import Status
from cima_runc.ima.template import Func
from cima_runc.ml.contents import Adopted, Content
from cima_runc.ml.store import ContainerNote, Store
from cima_runc.sensor.events import Event

_log = logging.getLogger(__name__)


class Writer:
    """The containers of this boot, in memory, on disk and in the TPM."""

    def __init__(
        self,
        core: Core,
        store: Store,
        runs: Runs,
        pcr: BindingPcr | None,
        on_ended: Callable[[int], None],
    ) -> None:
        """``pcr`` is None on a host without a TPM; ``on_ended(registration)`` is told when a
        container's end is durable."""
        self._core = core
        self._store = store
        self._runs = runs
        self._ledger = Ledger(core, store, pcr, self._let_go_of_superseded)
        self._on_ended = on_ended
        self._ending: set[int] = set()
        self._gone: OrderedDict[int, tuple[str, int]] = OrderedDict()
        """Line and run of registrations that others of their line have followed."""
        self._late: Counter[str] = Counter()
        """Events of each line that came after a run's end, and before the next begins."""

    # -- what there is ------------------------------------------------------------------------

    @property
    def containers(self) -> Iterable[Container]:
        """All containers of this boot, in order of registration."""
        return self._core.containers

    @property
    def missing(self) -> tuple[str, ...]:
        """The sources of measurement that the agent runs without."""
        return self._core.missing

    @property
    def backlog(self) -> int:
        """Records that could not be written yet."""
        return self._ledger.backlog

    @property
    def trouble(self) -> Trouble | None:
        """What keeps records from being written or bound at the moment."""
        return self._ledger.trouble

    @property
    def status(self) -> Status | None:
        """What a bind says of the host, as it is now; None without a TPM."""
        return self._ledger.status

    @property
    def expected_value(self) -> bytes | None:
        """What the binding PCR must be; None without a TPM, or before it was read."""
        return self._ledger.expected_value

    @property
    def last_bind(self) -> Bound | None:
        """What the last bind was over; None before the first of this agent."""
        return self._ledger.last

    @property
    def slots(self) -> int:
        """How many slots the table of registers has."""
        return self._core.slots

    @property
    def change_mark(self) -> int:
        """A number for the table as it is now, for :meth:`changes`."""
        return self._core.change_mark

    @property
    def changed(self) -> bool:
        """Whether a register has changed since the last bind."""
        return self._core.changed

    def changes(self, since: int | None) -> list[tuple[int, bytes]]:
        """Return the slots that were written after the mark ``since``, and what is in them; None:
        all that are not empty."""
        return self._core.changes(0 if since is None else since)

    def get(self, registration: int) -> Container | None:
        """Return a container by its registration number."""
        return self._core.get(registration)

    def latest(self, container_id: str) -> Container | None:
        """Return the latest registration of exactly this id, ended or not."""
        return self._core.latest(container_id)

    def live(self, container_id: str, bundle: str) -> Container | None:
        """Return the container of this id and bundle that has not ended, None without one."""
        return self._core.live(container_id, bundle)

    def in_namespace(self, mntns: int) -> Container | None:
        """Return the container with this mount namespace that has not ended."""
        return self._core.in_namespace(mntns)

    def count_of(self, uid: int) -> int:
        """Return how many registrations are this user's."""
        return self._core.count_of(uid)

    def bytes_of(self, uid: int) -> int:
        """Return how many bytes the records of this user's registrations take, about."""
        return self._core.bytes_of(uid)

    def run_of(self, line: str) -> Container | None:
        """Return the latest run of this line (hexadecimal) in this boot, ended or not."""
        return self._core.run_of(line)

    def runs_of(self, note: ContainerNote) -> tuple[int, ...]:
        """Return the registrations of the kept runs of a container's line, up to its own, oldest
        first; of all boots."""
        return self._runs.kept(note)

    # -- containers come and go ---------------------------------------------------------------

    def begin(self, note: ContainerNote, secret: bytes, first: Sequence[Content]) -> ContainerNote:
        """Begin a container's partition with ``first``, and return its note with its slot.

        All of it or nothing; its records are durable after :meth:`write`.

        Raises:
            CoreError: as for :meth:`Core.register`.
            RecordError: a content has no canonical form.
            OSError: its directory cannot be made.
        """
        note, records = self._core.register(note, secret, first, note.started)
        try:
            along = (
                () if note.line is None else self._runs.places(bytes.fromhex(note.line), note.uid)
            )
            self._store.create(note, secret, along=along)
        except BaseException:
            self.undo(note.registration)
            raise
        self._ledger.add(note.registration, records)
        self._runs.keep(note)
        if note.line is not None and (late := self._late.pop(note.line, 0)):
            self.lost(note.registration, late, "events of an earlier run came after its end")
        return note

    def next_run(self, line: bytes, uid: int = 0) -> NextRun:
        """Give the next run of a line its number; the run before must have been closed.

        It is durable when the run's first records are.

        Raises:
            LineError, OSError: what is known of the line cannot be used.
        """
        return self._runs.next(line, uid)

    def refused(self, run: NextRun) -> None:
        """Heed that a run that was given a number came to no partition."""
        self._runs.refused(run)

    def restore(self, container: Container, *, ending: bool = False) -> None:
        """Take in a container of an earlier agent.

        ``ending``: its last record says that it has ended, and its note does not yet.

        Raises:
            ValueError: its number or its slot is another container's.
        """
        self._core.restore(container)
        if ending:
            self._ending.add(container.number)

    def adopt(self, registration: int, line: bytes) -> None:
        """Go on with a container that an agent without lines registered: its first known run.

        Raises:
            OSError, LineError: it cannot be written down.
        """
        container = self._core.get(registration)
        self._runs.adopt(line, 0 if container is None else container.note.uid)
        self.add(registration, Adopted(line=line, run=1, previous="lost"))
        self.note_adopted(registration, line)

    def note_adopted(self, registration: int, line: bytes) -> None:
        """Note what an ``adopted`` record says."""
        self.write()
        self.update(registration, line=line.hex(), run=1)
        container = self._core.get(registration)
        assert container is not None
        self._runs.keep(container.note)

    def update(self, registration: int, **changes: Any) -> None:
        """Change fields of a container's note, here and on disk.

        Raises:
            OSError: the disk has the old note still.
        """
        self._store.write_note(self._core.update(registration, **changes))

    def end(self, registration: int, reason: str) -> None:
        """Record a container's end; its note says so once that is durable."""
        end = self._core.end(registration, reason, clock.now(), clock.since_boot())
        self._ledger.add(registration, [end])
        self._ending.add(registration)

    def forget_ended(
        self,
        until: int,
        wanted: Callable[[ContainerNote, int], bool] = lambda *_: False,
    ) -> None:
        """Let go of containers whose end was recorded by ``until``, in nanoseconds since boot.

        What is stored of them stays. Where an end is not durable yet, it is waited for; so are
        records that are ``wanted`` by somebody.
        """
        for registration in self._core.ended_before(until):
            container = self._core.get(registration)
            assert container is not None
            wait = registration in self._ending
            if not wait and not wanted(container.note, container.partition.count):
                self._core.forget(registration)

    def discard(self, registration: int) -> None:
        """Drop a container with everything that is known and stored of it, but what its line's next
        run goes on from."""
        with suppress(CimaError):  # of a damaged partition nothing can be kept
            self._runs.discard(self._store.read_note(registration))
        self._drop(registration)

    def undo(self, registration: int) -> None:
        """Drop a container that came to nothing: none of it ran, and nothing of it was bound."""
        container = self._core.get(registration)
        if container is not None:
            self._runs.undo(container.note)
        self._drop(registration)

    def _drop(self, registration: int) -> None:
        self._ledger.drop(registration)
        self._ending.discard(registration)
        if self._core.get(registration) is not None:
            self._core.forget(registration)
        self._store.discard(registration)

    # -- records ------------------------------------------------------------------------------

    def measure(self, event: Event, line: int | None, time: str) -> None:
        """Record what the sensor saw, where that is new; ``line``: where the kernel's log has it.

        Raises:
            CoreError: the container is not known, or has ended.
        """
        if event.registration in self._gone:
            self._came_late(*self._gone[event.registration])
            return
        try:
            record = self._core.measure(event, line, time)
        except EndedError as error:
            note = error.container.note
            if note.line is not None and self._came_late(note.line, note.run or 0):
                return
            raise
        if record is not None:
            self._ledger.add(event.registration, [record])

    def _came_late(self, line: str, run: int) -> bool:
        """Record, in the run that follows, an event that came after the end of its own; whether
        there is one."""
        following = self._core.run_of(line)
        if following is None or (following.note.run or 0) <= run or not lives(following.note):
            self._late[line] += 1
            return False
        self.lost(following.number, 1, f"an event of run {run} came after its end")
        return True

    def add(self, registration: int, content: Content) -> None:
        """Record a content.

        Raises:
            RecordError: the content has no canonical form.
        """
        self._ledger.add(registration, [self._core.add(registration, content, clock.now())])

    def add_file(
        self, registration: int, digest: bytes, path: bytes, *, func: Func, line: int
    ) -> None:
        """Record a file that the kernel's log has at ``line``, where that is new."""
        record = self._core.add_file(
            registration, digest, path, func=func, line=line, time=clock.now()
        )
        if record is not None:
            self._ledger.add(registration, [record])

    def lost(self, registration: int, count: int | None, reason: str) -> None:
        """Record that ``count`` events (None: nobody knows how many) never arrived."""
        self._ledger.add(registration, [self._core.lost(registration, count, reason, clock.now())])

    def dropped(self, registration: int, total: int, mntns: int | None = None) -> None:
        """Heed that the sensor has dropped so many of a container's events, ``total`` by now.

        ``mntns`` is as for :meth:`Core.dropped`.
        """
        container = self._core.get(registration)
        if container is None or container.note.state == "stopped":
            return
        new = total - container.dropped
        if new <= 0:
            return
        self._ledger.add(registration, [self._core.dropped(registration, new, clock.now(), mntns)])
        lost = about("events-lost", container=container.note.id, registration=registration)
        _log.warning("container %s: the sensor lost %d events", container.note.id, new, extra=lost)

    # -- durable, and bound -------------------------------------------------------------------

    def write(self) -> None:
        """Make every record durable; then the notes of containers may say that they have ended.

        Raises:
            OSError: a file could not be written; what is not on disk stays queued.
        """
        self._ledger.write()
        for registration in list(self._ending):
            container = self._core.get(registration)
            assert container is not None, "discard and forget_ended see to that"
            self._store.write_note(container.note)
            self._store.close_partition(registration)
            self._on_ended(registration)
            self._ending.discard(registration)

    def bind(self) -> float:
        """Bind every changed register into the TPM, once, and return the seconds that it took.

        Raises:
            OSError, TpmError: as :meth:`Ledger.bind`.
        """
        return self._ledger.bind()

    def bind_for_quote(self) -> Bound:
        """Bind for a tenant's quote.

        Raises:
            OSError, TpmError: as :meth:`Ledger.bind_for_quote`.
        """
        return self._ledger.bind_for_quote()

    def bind_for_report(self) -> Bound:
        """Return the last bind, or one made now where something has changed.

        Raises:
            OSError, TpmError: as :meth:`Ledger.bind_for_report`.
        """
        return self._ledger.bind_for_report()

    def probe(self) -> None:
        """Find out whether the disk and the TPM do what they should; never raises."""
        self._ledger.probe()

    def was_superseded(self, note: ContainerNote) -> None:
        """Heed that a run is let go of, since another of its line follows: what becomes of events
        of it that come still."""
        assert note.line is not None
        self._gone[note.registration] = (note.line, note.run or 0)
        while len(self._gone) > limits.ENDED_RUNS:
            self._gone.popitem(last=False)

    def _let_go_of_superseded(self) -> None:
        for container in self._core.bound(self._ending):
            self.was_superseded(container.note)

    def compare(self) -> None:
        """Compare the PCR with the journal, and write down what differs.

        Raises:
            OSError, TpmError: as :meth:`Ledger.settle`.
        """
        self._ledger.settle()
