"""The agent's rooms, one duty each, and who may enter: :class:`Rooms` is the writer's thread's
alone, :class:`Lobby` is open to every thread.

Work for the writer is a function of the rooms, handed to :meth:`WriterThread.submit`: there is no
other way to get hold of them.
"""

import asyncio
import enum
import itertools
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from queue import PriorityQueue
from typing import Protocol, TypeVar

from cima_runc.agent.assembly import Assembly
from cima_runc.agent.attester import Attester
from cima_runc.agent.binding_pcr import BindingPcr
from cima_runc.agent.candidate import Looker
from cima_runc.agent.confirmations import Confirmations
from cima_runc.agent.core import Core
from cima_runc.agent.current import CurrentSettings
from cima_runc.agent.enforcement import Enforcement
from cima_runc.agent.events import Events
from cima_runc.agent.fresh import Fresh
from cima_runc.agent.held import Held
from cima_runc.agent.host_services import HostServices
from cima_runc.agent.lifecycle import Lifecycle
from cima_runc.agent.notices import Notices
from cima_runc.agent.process import ContainerProcess, Living, MarkOf, find_again
from cima_runc.agent.questions import Questions
from cima_runc.agent.registration import Registration
from cima_runc.agent.retention import Plan, Retention
from cima_runc.agent.runs import Runs
from cima_runc.agent.sources import Sources
from cima_runc.agent.takeover import TakeOver
from cima_runc.agent.writer import Writer
from cima_runc.base import clock
from cima_runc.cpcr.journal import Journal
from cima_runc.cpcr.table import Table
from cima_runc.measure.rootfs import Store as RootfsStore
from cima_runc.ml.lines import Lines
from cima_runc.ml.listing import stored_notes
from cima_runc.ml.store import ContainerNote, Store, StoreError

_T = TypeVar("_T")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rooms:
    """What only the writer's thread works with."""

    settings: CurrentSettings
    writer: Writer
    events: Events
    lifecycle: Lifecycle
    registration: Registration
    takeover: TakeOver
    questions: Questions
    retention: Retention
    services: HostServices
    attester: Attester
    confirmations: Confirmations

    def commit(self, *, bind: bool) -> float:
        """Turn what has come into records, make them durable, and ``bind`` them if wanted.

        Returns the seconds that binding took.

        Raises:
            OSError, TpmError: nothing is lost, the next call tries again.
        """
        self.lifecycle.take_notices()
        self.takeover.go_on()
        self.events.take()
        self.events.count_lost()
        self.services.collect()
        self.writer.write()
        return self.writer.bind() if bind else 0.0

    def take_over(self) -> None:
        """Go on with the containers of an earlier agent."""
        self.takeover.run(self._retained())

    def forget_ended(self) -> None:
        """Let go of containers that ended so long ago that nobody may ask for them any more."""
        self.writer.forget_ended(self._retained(), self.confirmations.wants)

    def _retained(self) -> int:
        """Return the time since boot, in ns, whose ended containers have been kept long enough."""
        return clock.since_boot() - self.settings.value.attestation.retention_seconds * 10**9


@dataclass(frozen=True)
class Lobby:
    """What any thread may use: nothing in it changes a register."""

    looker: Looker
    held: Held
    notices: Notices
    services: HostServices
    """Its methods say which are for any thread."""
    attester: Attester
    """Its methods say which are for any thread."""
    assembly: Assembly
    slots: Callable[[], int]
    """How many slots the table of registers has."""
    registers: Callable[[], object]
    """Something that is another when a register has changed."""
    confirmations: Confirmations
    look_around: Callable[[], Living]
    """Whose all processes of the host are."""
    plan: Callable[[], Plan]
    """What of the stored goes."""


class Turn(enum.IntEnum):
    """What goes first where much waits; of one kind, what came first."""

    FIRST = 0
    """Containers that want to start."""
    USUAL = 1
    """Records, ends, questions, reports."""
    LAST = 2
    """Tenants' quotes."""


class Submit(Protocol):
    """Has work done by the writer's thread."""

    async def __call__(self, work: Callable[[Rooms], _T], turn: Turn = Turn.USUAL) -> _T:
        """Return what ``work`` returns or raises."""


class WriterThread:
    """The one thread that enters the rooms."""

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms
        self._queue: PriorityQueue[tuple[int, int, Callable[[], None] | None]] = PriorityQueue()
        self._numbers = itertools.count()
        self._thread = threading.Thread(target=self._work, name="writer")
        self._thread.start()

    async def submit(self, work: Callable[[Rooms], _T], turn: Turn = Turn.USUAL) -> _T:
        """Have ``work`` done in its turn, and return what it returns."""
        answer: Future[_T] = Future()

        def do() -> None:
            if not answer.set_running_or_notify_cancel():
                return
            try:
                answer.set_result(work(self._rooms))
            except BaseException as error:
                answer.set_exception(error)

        self._queue.put((turn, next(self._numbers), do))
        return await asyncio.wrap_future(answer)

    def shutdown(self) -> None:
        """Wait for what was submitted; nothing may be after that."""
        self._queue.put((len(Turn), next(self._numbers), None))
        self._thread.join()

    def _work(self) -> None:
        while True:
            _, _, do = self._queue.get()
            if do is None:
                return
            do()


def open_rooms(
    *,
    current: CurrentSettings,
    boot_id: str,
    hooks_dir: str,
    store: Store,
    sources: Sources,
    held_dir: Path | None,
    on_process: Callable[[int, int], None],
    on_progress: Callable[[], None],
    find_again: Callable[[ContainerNote, MarkOf | None], ContainerProcess | None] = find_again,
) -> tuple[Rooms, Lobby]:
    """Make the rooms of one agent over a ``store`` that is prepared.

    Raises:
        JournalError, OSError: this boot's journal cannot be used.
    """
    settings = current.value
    sensor, kernel_log, tpm = sources.sensor, sources.kernel_log, sources.tpm
    core = Core(Table(settings.binding.slots), sources.missing, lambda: current.value.limits)
    runs = Runs(store, Lines(store.root / "lines"))
    notes = stored_notes(store, None, _tell_of_damage)
    runs.restore(notes)
    pcr = None
    if tpm is not None:
        known = any(note.boot_id == boot_id for note in notes)
        journal = Journal.open(store.journal_path(boot_id), boot_is_known=known)
        pcr = BindingPcr(journal, tpm, settings.tpm.pcr)
    writer = Writer(core, store, runs, pcr, sensor.forget if sensor is not None else lambda _: None)
    fresh = Fresh(store, tpm)
    held, notices = Held(held_dir), Notices()
    enforcement = Enforcement(settings.enforcement, sensor) if sensor is not None else None
    events = Events(writer=writer, sensor=sensor, kernel_log=kernel_log, on_progress=on_progress)
    lifecycle = Lifecycle(
        writer=writer,
        events=events,
        sensor=sensor,
        held=held,
        notices=notices,
        on_process=on_process,
    )
    services = HostServices(
        boot_id=boot_id,
        host_pcr=settings.ima.host_pcr,
        writer=writer,
        digests=store.root / "digests.json",
        kernel_log=kernel_log,
        new_number=fresh.number,
        new_secret=fresh.secret,
    )
    confirmations = Confirmations()
    retention = Retention(current, boot_id, writer, store, runs, confirmations=confirmations)
    attester = Attester(
        settings=settings, writer=writer, tpm=tpm, commit=lambda: rooms.commit(bind=False)
    )
    assembly = Assembly(
        settings=settings,
        boot_id=boot_id,
        store=store,
        kernel_log=kernel_log,
        host_log=attester.host_log,
    )
    rooms = Rooms(
        settings=current,
        writer=writer,
        events=events,
        lifecycle=lifecycle,
        registration=Registration(
            settings=current,
            boot_id=boot_id,
            hooks_dir=hooks_dir,
            writer=writer,
            events=events,
            lifecycle=lifecycle,
            services=services,
            enforcement=enforcement,
            sensor=sensor,
            fresh=fresh,
        ),
        takeover=TakeOver(
            settings=current,
            writer=writer,
            store=store,
            events=events,
            lifecycle=lifecycle,
            services=services,
            enforcement=enforcement,
            sensor=sensor,
            held=held,
            find_again=find_again,
            notes=[note for note in notes if note.boot_id == boot_id],
        ),
        questions=Questions(
            settings=current,
            boot_id=boot_id,
            writer=writer,
            store=store,
            events=events,
            retention=retention,
            sensor=sensor,
            kernel_log=kernel_log,
            tpm=tpm,
        ),
        retention=retention,
        services=services,
        attester=attester,
        confirmations=confirmations,
    )
    looker = Looker(current, RootfsStore.at(store.root / "rootfs"), services)
    lobby = Lobby(
        *(looker, held, notices, services, attester, assembly),
        slots=lambda: writer.slots,
        registers=lambda: (writer.change_mark, writer.changed),
        confirmations=confirmations,
        look_around=lifecycle.look_around,
        plan=retention.plan,
    )
    return rooms, lobby


def _tell_of_damage(registration: int, error: StoreError) -> None:
    _log.error("registration %d is damaged and left out: %s", registration, error)
