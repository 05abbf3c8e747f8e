"""The writer: all that changes a container's records, its note or its register goes through it.

It alone holds the core and the ledger, so a record that the core makes is always queued for the
disk, and what is forgotten is forgotten everywhere. One thread uses it (:mod:`.rooms`).
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from cima_runc.agent.core import BoundRegister, Core
from cima_runc.agent.index import Container
from cima_runc.agent.journald import about
from cima_runc.agent.ledger import Ledger, Trouble
from cima_runc.base import clock
from cima_runc.cpcr.binding import Bind
from cima_runc.cpcr.journal import JournalState
from cima_runc.ima.template import Func
from cima_runc.ml.contents import Content
from cima_runc.ml.store import ContainerNote, Store
from cima_runc.sensor.events import Event

_log = logging.getLogger(__name__)


class Writer:
    """The containers of this boot, in memory, on disk and in the TPM."""

    def __init__(
        self, core: Core, ledger: Ledger, store: Store, on_ended: Callable[[int], None]
    ) -> None:
        """``on_ended(registration)`` is told when a container's end is durable."""
        self._core = core
        self._ledger = ledger
        self._store = store
        self._on_ended = on_ended
        self._ending: set[int] = set()

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
    def journal_state(self) -> JournalState:
        """What the binding journal adds up to."""
        return self._ledger.journal_state

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

    # -- containers come and go ---------------------------------------------------------------

    def begin(self, note: ContainerNote, secret: bytes, first: Sequence[Content]) -> ContainerNote:
        """Begin a container's partition with ``first``, and return its note with its slot.

        All of it or nothing; its records are durable after :meth:`write`.

        Raises:
            CoreError: its mount namespace is that of a container that has not ended.
            RecordError: a content has no canonical form.
            OSError: its directory cannot be made.
        """
        note, records = self._core.register(note, secret, first, note.started)
        try:
            self._store.create(note, secret)
        except BaseException:
            self.discard(note.registration)
            raise
        self._ledger.add(note.registration, records)
        return note

    def restore(self, container: Container, *, ending: bool = False) -> None:
        """Take in a container of an earlier agent.

        ``ending``: its last record says that it has ended, and its note does not yet.

        Raises:
            ValueError: its number or its slot is another container's.
        """
        self._core.restore(container)
        if ending:
            self._ending.add(container.number)

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

    def forget_ended(self, until: int) -> None:
        """Let go of containers whose end was recorded by ``until``, in nanoseconds since boot.

        What is stored of them stays. Where an end is not durable yet, it is waited for.
        """
        for registration in self._core.ended_before(until):
            if registration not in self._ending:
                self._core.forget(registration)

    def discard(self, registration: int) -> None:
        """Drop a container with everything that is known and stored of it."""
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
        record = self._core.measure(event, line, time)
        if record is not None:
            self._ledger.add(event.registration, [record])

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

    def dropped(self, registration: int, total: int) -> None:
        """Heed that the sensor has dropped so many of a container's events, ``total`` by now."""
        container = self._core.get(registration)
        if container is None or container.note.state == "stopped":
            return
        new = total - container.dropped
        if new <= 0:
            return
        self._ledger.add(registration, [self._core.dropped(registration, new, clock.now())])
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

    def bind(self) -> None:
        """Bind every changed register into the TPM, once.

        Raises:
            OSError, TpmError: as :meth:`Ledger.bind`.
        """
        self._ledger.bind()

    def bind_now(self) -> Bind:
        """Bind what is not bound yet, and return the bind that the PCR now shows.

        Raises:
            OSError, TpmError: as :meth:`Ledger.bound`.
        """
        return self._ledger.bound()

    def bound(self, container: Container) -> BoundRegister:
        """Return the container's register and its place in the tree, after :meth:`bind_now`."""
        return self._core.bound(container)

    def compare(self) -> None:
        """Compare the PCR with the journal, and write down what differs.

        Raises:
            OSError, TpmError: as :meth:`Ledger.settle`.
        """
        self._ledger.settle()
