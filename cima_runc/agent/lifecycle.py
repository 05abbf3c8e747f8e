"""Lifecycle: from a container's registration to its end, as hooks and the kernel tell of it."""

import logging
from collections.abc import Callable

from cima_runc.agent.events import Events
from cima_runc.agent.held import Held
from cima_runc.agent.index import Container
from cima_runc.agent.journald import about
from cima_runc.agent.notices import Notices
from cima_runc.agent.process import ContainerProcess, Living, look_around
from cima_runc.agent.writer import Writer
from cima_runc.base.errors import CimaError
from cima_runc.base.text import printable
from cima_runc.ml.store import ContainerNote
from cima_runc.runtime.hook_state import parse_hook_state, qualified
from cima_runc.sensor.loader import Sensor

_log = logging.getLogger(__name__)

LEFT_BEHIND = "processes that it left behind are watched no more"
"""Reason of a ``lost`` record."""


class LifecycleError(CimaError):
    """A container has not ended that is said to have."""


class Lifecycle:
    """Holds containers' first processes and records their ends; for the writer's thread."""

    def __init__(
        self,
        *,
        writer: Writer,
        events: Events,
        sensor: Sensor | None,
        held: Held,
        notices: Notices,
        on_process: Callable[[int, int], None],
    ) -> None:
        """``on_process(registration, pidfd)`` is told of each container's first process."""
        self._writer = writer
        self._events = events
        self._sensor = sensor
        self._held = held
        self._notices = notices
        self._on_process = on_process
        self._processes: dict[int, ContainerProcess] = {}
        self._released: dict[int, int] = {}
        self.unclear: set[int] = set()
        """Containers of an earlier agent of which it cannot be told yet whether they live: they
        count as if they did."""

    # -- what hooks tell ----------------------------------------------------------------------

    def take_notices(self) -> None:
        """Heed what hooks have told of without waiting; what goes wrong with one is logged."""
        while notice := self._notices.take():
            verb, body = notice
            try:
                if verb == "poststart":
                    self.poststart(body)
                else:
                    self.poststop(body)
            except (CimaError, OSError) as error:
                _log.error("%s failed: %s", verb, printable(str(error)))

    def poststart(self, body: bytes, uid: int = 0) -> None:
        """Note that the container, which is the user's, runs."""
        container = self._of_hook(body, uid)
        if container is not None and container.note.state == "created":
            self._writer.update(container.number, state="running")

    def release_deleted(self, body: bytes) -> None:
        """Let go of a container that was deleted: its runtime goes on once its file systems can."""
        container = self._of_hook(body)
        if container is not None:
            self._release(container)

    def poststop(self, body: bytes, uid: int = 0) -> None:
        """Record the end of the container, which is the user's, after everything that it did.

        Raises:
            LifecycleError: a user other than root says so of one that lives.
        """
        container = self._of_hook(body, uid)
        if container is None:
            return
        if uid != 0 and not self.is_empty(container):
            raise LifecycleError(f"container {container.note.id} has not ended")
        self.end(container, "deleted")

    def _of_hook(self, body: bytes, uid: int = 0) -> Container | None:
        state = parse_hook_state(body)
        return self._writer.live(qualified(state.id, uid), state.bundle)

    # -- what the kernel tells ----------------------------------------------------------------

    def process_died(self, registration: int) -> None:
        """A container's first process has just ended: where all others have, let go of it.

        So a runtime that deletes it need not wait for that.
        """
        container = self._writer.get(registration)
        process = self._processes.get(registration)
        if container is None or process is None or not process.is_init:
            return
        if not process.cgroup_populated():
            self._release(container)

    def process_ended(self, registration: int, living: Living | None = None) -> bool:
        """A container's first process has ended: record its end, unless others live on in it.

        ``living`` is of a moment ago; None: it is looked now. Returns whether the end is recorded.
        """
        container = self._writer.get(registration)
        if container is None or container.note.state == "stopped":
            return True
        if not self.is_empty(container, living):
            return False
        self.end(container, "its first process ended", is_empty=True)
        return True

    # -- held, and ended ----------------------------------------------------------------------

    def lives(self, container: Container) -> bool:
        """Whether the container's first process lives, as far as it is held."""
        process = self._processes.get(container.number)
        return container.number in self.unclear or (process is not None and process.alive())

    def is_empty(self, container: Container, living: Living | None = None) -> bool:
        """Whether no process of the container is left, its first one having ended.

        ``living`` is of a moment ago; None: it is looked now.
        """
        process = self._processes.get(container.number)
        if process is None:
            return container.number not in self.unclear
        if process.alive() or process.cgroup_populated():
            return False
        return not self._left_behind(process, container.number, living)

    def _left_behind(
        self, process: ContainerProcess, registration: int, living: Living | None = None
    ) -> bool:
        if process.is_init:
            return False  # and nothing is looked for
        return process.left_behind(living or self.look_around(), registration)

    def look_around(self) -> Living:
        """Look whose all processes of the host are; in any thread."""
        return look_around(None if self._sensor is None else self._sensor.mark_of)

    def hold(self, note: ContainerNote, process: ContainerProcess) -> None:
        """Hold the first process of a container that was registered or taken over.

        Raises:
            OSError: its end cannot be waited for; it is not held.
        """
        self._on_process(note.registration, process.pidfd)
        self._processes[note.registration] = process
        self._held.add(note.id, note.bundle)

    @property
    def held_registrations(self) -> frozenset[int]:
        """The containers whose processes are held."""
        return frozenset(self._processes)

    def was_released(self, registration: int, lost: int) -> None:
        """Heed that an earlier agent watched this container no more, and what the sensor lost."""
        self._released[registration] = lost

    def dependents(self) -> dict[int, int]:
        """Return, for each partition of host services in use, a living first process that has it.

        Behind one that was left behind there may be others of the container's own, and behind the
        number of one that has ended is anybody.
        """
        found = {}
        for number, process in self._processes.items():
            container = self._writer.get(number)
            if container is None or container.note.dependencies is None:
                continue
            if process.pid == container.note.pid and process.alive():
                found[container.note.dependencies] = process.pid
        return found

    def attested(self, registration: int, records: int) -> None:
        """Note that evidence of so many records was given, of a container that has ended."""
        container = self._writer.get(registration)
        if container is not None and container.note.state == "stopped":
            self._writer.update(registration, attested=records)

    def end(
        self, container: Container, reason: str, *, bind: bool = True, is_empty: bool = False
    ) -> None:
        """Record a container's end, after everything that it did.

        Not ``bind``: a bind follows anyway. ``is_empty``: it was looked, and no process is left.

        Raises:
            OSError, TpmError: its end is not recorded or not bound; the next commit does that.
        """
        number = container.number
        self._release(container, is_empty=is_empty)
        # What the container did is in the sensor's buffer still: first that, then its end.
        self._events.take()
        self._writer.dropped(number, self._released.pop(number, 0))
        self._writer.end(number, reason)
        self._writer.write()
        if bind:
            self._writer.bind()
        ended = about(
            "container-ended",
            container=container.note.id,
            registration=container.note.registration,
        )
        _log.info("container %s ended: %s", container.note.id, reason, extra=ended)

    def _release(self, container: Container, *, is_empty: bool = False) -> None:
        """Watch the container no more, and hold its process and namespace no more.

        It may be said to have ended, as by who deletes it, while it has left processes behind.
        ``is_empty``: it has not; all processes of the host need not be looked at once more.
        """
        number = container.number
        process = self._processes.get(number)
        left = (
            not is_empty
            and process is not None
            and not process.alive()
            and self._left_behind(process, number)
        )
        if self._sensor is not None and number in self._sensor.registrations():
            self._released[number] = self._sensor.unwatch(number).total
        if left:
            self._writer.lost(number, None, LEFT_BEHIND)
        if process is not None:
            del self._processes[number]
            process.close()
        self._held.remove(container.note.id, container.note.bundle)
