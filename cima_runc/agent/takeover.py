"""Take-over: an agent that starts goes on with the containers that an earlier one registered."""

import itertools
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Any

from cima_runc.agent.core import dropped_in
from cima_runc.agent.current import CurrentSettings
from cima_runc.agent.enforcement import Enforcement
from cima_runc.agent.events import Events
from cima_runc.agent.held import Held
from cima_runc.agent.host_services import HostServices
from cima_runc.agent.index import Container, lives
from cima_runc.agent.journald import about
from cima_runc.agent.lifecycle import LEFT_BEHIND, Lifecycle
from cima_runc.agent.process import ContainerProcess, MarkOf
from cima_runc.agent.registration import FIRST_RECORDS
from cima_runc.agent.rights import device_of_root, rights_of
from cima_runc.agent.writer import Writer
from cima_runc.base import clock, limits
from cima_runc.base.errors import CimaError
from cima_runc.base.text import printable
from cima_runc.ml import contents
from cima_runc.ml.lines import line_name, line_of
from cima_runc.ml.partition import Partition
from cima_runc.ml.records import Record, RecordError
from cima_runc.ml.store import ContainerNote, Store, StoreError
from cima_runc.sensor.loader import Sensor
from cima_runc.tpm.device import TpmError

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Found:
    """A container as an earlier agent left it on disk."""

    container: Container
    records: list[Record]
    ending: bool
    """Whether its last record says that it has ended, and its note did not."""


class TakeOver:
    """Takes over this boot's containers, once; for the writer's thread."""

    def __init__(
        self,
        *,
        settings: CurrentSettings,
        writer: Writer,
        store: Store,
        events: Events,
        lifecycle: Lifecycle,
        services: HostServices,
        enforcement: Enforcement | None,
        sensor: Sensor | None,
        held: Held,
        find_again: Callable[[ContainerNote, MarkOf | None], ContainerProcess | None],
        notes: list[ContainerNote],
    ) -> None:
        """``find_again`` finds a process of a container (:func:`.process.find_again`); ``notes``
        are those of this boot's, as they are stored when the agent starts."""
        self._settings = settings
        self._writer = writer
        self._store = store
        self._events = events
        self._lifecycle = lifecycle
        self._services = services
        self._enforcement = enforcement
        self._sensor = sensor
        self._held = held
        self._find_again = find_again
        self._notes = notes
        self._ended: dict[int, str] = {}
        """Why containers have ended whose ends are not recorded yet."""
        self._unclear: dict[int, Container] = {}
        """Those of which it cannot be told yet whether they live."""
        self._told: set[int] = set()
        """Those of them of which the log has said so."""

    def run(self, retained: int) -> None:
        """Take in this boot's containers, but those that had ended by ``retained``.

        That is in nanoseconds since boot. The sensor has watched them all the while. Where it has
        not, since it was loaded anew, they are watched again, and that something ran in between is
        recorded as lost. What cannot be written or bound, as on a full disk, is tried again by
        :meth:`go_on`: only an agent that runs can make room, and say why nothing may start.
        """
        begun: list[int] = []
        for found in self._stored(retained):
            container = found.container
            number, note = container.number, container.note
            try:
                self._writer.restore(container, ending=found.ending)
            except ValueError as error:
                _log.error("registration %d is damaged and left out: %s", number, error)
                continue
            if note.kind == "dependencies":
                self._services.restore(container, found.records)
            elif note.state != "stopped" and container.partition.count < FIRST_RECORDS:
                # Its hook had no answer, so nothing of it has run, and nothing is bound. Should it
                # ask again: a new one.
                begun.append(number)
            elif note.state != "stopped":
                self._unclear[number] = container
                self._lifecycle.unclear.add(number)
                self._look_again(number)
                if note.line is None:
                    try:
                        self._adopt(found)
                    except (CimaError, OSError) as error:
                        why = printable(str(error))
                        _log.error("container %s has no line until a restart: %s", note.id, why)
        with suppress(OSError):  # the writer keeps what it could not write, and the ring the rest
            self._events.take()
        for number in begun:
            _log.info("registration %d was not completed", number)
            self._events.unwatch(number)
            self._writer.undo(number)
        try:
            self.go_on()
        except OSError as error:
            _log.error("ends of containers wait: %s", printable(str(error)))
        self._forget_strangers()
        self._held.begin()
        try:
            self._writer.write()
            self._writer.bind()
        except (OSError, TpmError) as error:
            _log.error("records of an earlier agent's containers wait: %s", printable(str(error)))
        self._writer.probe()

    def go_on(self) -> None:
        """Take over those that could not be, and record ends that could not be recorded yet.

        Raises:
            OSError: it cannot be still; the next call tries again.
        """
        for number in list(self._unclear):
            self._look_again(number)
        for number, reason in list(self._ended.items()):
            gone = self._writer.get(number)
            if gone is not None and lives(gone.note):
                try:
                    self._lifecycle.end(gone, reason, bind=False)
                except CimaError as error:
                    self._tell(number, f"the end of container {gone.note.id} waits", error)
                    continue
            self._told.discard(number)
            del self._ended[number]

    def _tell(self, number: int, what: str, error: Exception) -> None:
        """Say once what waits for the next time: every second has one, and no other container may
        wait for it."""
        if number not in self._told:
            _log.error("%s: %s", what, printable(str(error)))
            self._told.add(number)

    def _look_again(self, number: int) -> None:
        """Take over a container; where that fails it waits for the next time, and no other does."""
        container = self._unclear[number]
        if self._writer.get(number) is container and lives(container.note):
            try:
                reason = self._readopt(container)
            except (CimaError, OSError) as error:
                self._tell(number, f"container {container.note.id} is not taken over yet", error)
                return
            if reason:
                self._ended[number] = reason
        self._told.discard(number)
        del self._unclear[number]
        self._lifecycle.unclear.discard(number)

    def _stored(self, retained: int) -> Iterator[_Found]:
        """Yield what is stored of this boot's containers, in order of registration."""
        for note in self._left(retained):
            number = note.registration
            try:
                records = list(self._store.records(number))
                partition = Partition.restore(note.id, records)
                secret = self._store.read_secret(number)
                size = self._store.size(number)
            except (StoreError, RecordError, OSError) as error:
                why = printable(str(error))
                _log.error("registration %d is damaged and left out: %s", number, why)
                continue
            if note.kind == "dependencies" and not records:
                self._store.discard(number)
                continue
            container = Container(
                note,
                secret,
                partition,
                dropped_in(records),
                size=size,
                last_line=_last_line(records),
            )
            last = records[-1] if records else None
            ending = note.state != "stopped" and last is not None and _is_end(last)
            if ending and last is not None:
                when = {"ended": last.meta.get("time"), "ended_ns": clock.since_boot()}
                container.note = note.model_copy(update={"state": "stopped", **when})
            yield _Found(container, records, ending)

    def _adopt(self, found: _Found) -> None:
        """Give a container that an agent without lines registered its place in one.

        Under a CRI too it is called by its id: which engine called was not measured then.
        """
        number = found.container.number
        annotations: Any = None
        for record in found.records:
            content = contents.read(record)
            if isinstance(content, contents.Adopted):
                self._writer.note_adopted(number, content.line)
                return
            if isinstance(content, contents.Config):
                annotations = content.config.get("annotations")
        note = found.container.note
        own = annotations if isinstance(annotations, dict) else {}
        name = line_name(note.id, own, contents.NO_ENGINE)
        self._writer.adopt(number, line_of(note.uid, note.owners, name))

    def _left(self, retained: int) -> list[ContainerNote]:
        notes, self._notes = self._notes, []
        found = [note for note in notes if not (note.ended and (note.ended_ns or 0) < retained)]
        # By a clock that nobody sets, first: what comes last is a container's latest registration.
        return sorted(
            self._without_superseded(found), key=lambda note: (note.start_ticks, note.started)
        )

    def _without_superseded(self, notes: list[ContainerNote]) -> Iterator[ContainerNote]:
        """Leave out runs that ended and that another of their line follows: their slots may be
        others' by now."""
        latest: dict[str, int] = {}
        for note in notes:
            if note.line is not None:
                latest[note.line] = max(latest.get(note.line, 0), note.run or 0)
        for note in notes:
            if note.state != "stopped" or note.line is None or note.run == latest[note.line]:
                yield note
            else:
                self._writer.was_superseded(note)

    def _readopt(self, container: Container) -> str:
        """Hold the container's process again; returns why it has ended, where it has."""
        note = container.note
        number = note.registration
        unwatched = self._sensor.unwatched().get(number) if self._sensor is not None else None
        if self._sensor is not None and unwatched is not None:
            # Its end was being recorded, and what is to be said before it may not have been.
            self._lifecycle.was_released(number, unwatched.total)
            if self._has_left_behind(note, self._sensor.mark_of):
                self._writer.lost(number, None, LEFT_BEHIND)
            return "ended"
        watched = self._sensor is not None and number in self._sensor.registrations()
        # Marks are of containers that were watched all the while.
        mark_of = self._sensor.mark_of if self._sensor is not None and watched else None
        process = self._find_again(note, mark_of)
        if process is not None:
            try:
                self._lifecycle.hold(note, process)
            except OSError:
                process.close()
                raise
        if self._sensor is not None and not watched:
            self._writer.lost(number, None, "the sensor was not loaded")
            if process is not None:
                try:
                    self._watch_again(self._sensor, note, process)
                except (CimaError, OSError) as error:
                    # Its log says already that what it does is not known.
                    why = printable(str(error))
                    _log.error("container %s is watched no more: %s", note.id, why)
        if process is None:
            _log.info("container %s has ended", note.id)
            return "ended while the agent was not running"
        taken = about("container-taken-over", container=note.id, registration=note.registration)
        _log.info("container %s is taken over", note.id, extra=taken)
        return ""

    def _watch_again(self, sensor: Sensor, note: ContainerNote, process: ContainerProcess) -> None:
        first = self._first(note.registration)
        config = first.get("config", {}).get("config", {})
        sensor.watch(
            *(note.mntns, note.registration, process.cgroup_id, self._allowlist_again(first)),
            rights_of(
                config,
                process.pid,
                device_of_root(
                    config, note.bundle, process.pid, uid=note.uid, limit=limits.MOUNTINFO_IN_TURN
                ),
                deny_memory=self._settings.value.enforcement.memory == "deny",
            ),
        )

    def _has_left_behind(self, note: ContainerNote, mark_of: MarkOf) -> bool:
        """Whether processes go on of a container that is watched no more, its first having ended.

        One that lives waits to be registered again, and has run nothing yet.
        """
        found = self._find_again(note, mark_of)
        if found is None:
            return False
        with closing(found):
            return (found.pid, found.start_ticks) != (note.pid, note.start_ticks)

    def _first(self, number: int) -> dict[str, Mapping[str, Any]]:
        """Return the contents that a container's partition began with, by type."""
        return {
            str(record.content.get("type")): record.content
            for record in itertools.islice(self._store.records(number), FIRST_RECORDS)
        }

    def _allowlist_again(self, first: Mapping[str, Mapping[str, Any]]) -> int | None:
        """Return the list that the container began with, None for one that may run anything."""
        image = first.get("register", {}).get("enforced")
        if image is None or self._enforcement is None:
            return None
        return self._enforcement.again(image, first.get("rootfs", {"layers": []})).handle

    def _forget_strangers(self) -> None:
        """Watch nothing that is not registered: its registration was never completed.

        What the sensor counts for those whose ends are not recorded yet is not lost.
        """
        if self._sensor is None:
            return
        known = self._lifecycle.held_registrations | self._ended.keys() | self._unclear.keys()
        for number in self._sensor.registrations() - known:
            _log.info("registration %d came to nothing and is watched no more", number)
            self._events.unwatch(number)
        for number in self._sensor.unwatched().keys() - known:
            self._sensor.forget(number)


def _is_end(record: Record) -> bool:
    return bool(record.content.get("type") == "exit")


def _last_line(records: list[Record]) -> int | None:
    lines = (record.meta.get("ima_line") for record in records)
    return max((line for line in lines if isinstance(line, int)), default=None)
