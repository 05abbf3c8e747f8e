"""The agent's core: events in, records and register values out. No I/O.

It knows every registered container of this boot, its partition, and the tree that binds them.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from cima_runc.agent.index import Container, Index
from cima_runc.agent.violations import content_of, is_measured
from cima_runc.base import limits
from cima_runc.base.errors import CimaError
from cima_runc.config import LimitSettings
from cima_runc.cpcr.inner import inner
from cima_runc.cpcr.table import Table
from cima_runc.ima.template import Func
from cima_runc.ml import contents
from cima_runc.ml.contents import Content
from cima_runc.ml.partition import Partition
from cima_runc.ml.records import Record, RecordError
from cima_runc.ml.store import ContainerNote
from cima_runc.sensor.events import Event

_LINE = 512
"""Bytes of a file's record on disk beside its path, about."""
SENSOR_DROPPED = "the sensor dropped events"
"""Reason of a ``lost`` record."""


class CoreError(CimaError):
    """The container cannot be registered, or is not known."""


class EndedError(CoreError):
    """An event came after its container's end was recorded."""

    def __init__(self, container: Container) -> None:
        super().__init__(f"an event of registration {container.number}, which has ended")
        self.container = container


class Core:
    """The containers of this boot and the table of their registers.

    ``missing`` names the sources of measurement that this agent runs without; it stands in every
    record. ``limits_of_each()`` are those of a container, as they are now.
    """

    def __init__(
        self,
        table: Table,
        missing: tuple[str, ...] = (),
        limits_of_each: Callable[[], LimitSettings] = LimitSettings,
    ) -> None:
        self.missing = missing
        self._limits = limits_of_each
        self._table = table
        self._index = Index()
        self._superseded: set[int] = set()
        self._of_users: Counter[int] = Counter()
        """Bytes of records of each user's containers, about; none of root's."""

    @property
    def containers(self) -> Iterable[Container]:
        """All containers of this boot, in order of registration."""
        return iter(self._index)

    @property
    def changed(self) -> bool:
        """Whether a register has changed since the last bind."""
        return bool(self._index.changed)

    @property
    def changed_registrations(self) -> list[int]:
        """The containers whose registers have changed since the last bind."""
        return list(self._index.changed)

    @property
    def table(self) -> bytes:
        """The table's digest as of the last bind, or with a slot given back since."""
        return self._table.digest

    @property
    def slots(self) -> int:
        """How many slots the table has."""
        return self._table.slots

    @property
    def inners(self) -> bytes:
        """What is in the table's slots, 32 bytes each, in order."""
        return self._table.inners

    @property
    def change_mark(self) -> int:
        """A number for the table as it is now, for :meth:`changes`."""
        return self._table.mark

    def changes(self, since: int) -> list[tuple[int, bytes]]:
        """Return the slots that were written after the mark ``since``, and what is in them."""
        return self._table.changes(since)

    def get(self, registration: int) -> Container | None:
        """Return a container by its registration number."""
        return self._index.get(registration)

    def latest(self, container_id: str) -> Container | None:
        """Return the latest registration of exactly this id, ended or not."""
        return self._index.ids.latest(container_id)

    def live(self, container_id: str, bundle: str) -> Container | None:
        """Return the container of this id and bundle that has not ended, None without one."""
        return self._index.living.latest((container_id, bundle))

    def run_of(self, line: str) -> Container | None:
        """Return the latest run of this line (hexadecimal) in this boot, ended or not."""
        return self._index.lines.latest(line)

    def in_namespace(self, mntns: int) -> Container | None:
        """Return the container with this mount namespace that has not ended."""
        return self._index.namespaces.latest(mntns)

    def count_of(self, uid: int) -> int:
        """Return how many registrations are this user's."""
        return self._index.users.count(uid)

    def bytes_of(self, uid: int) -> int:
        """Return how many bytes the records of a user's containers take, about; not of root's."""
        return self._of_users[uid]

    def register(
        self, note: ContainerNote, secret: bytes, first: Sequence[Content], time: str
    ) -> tuple[ContainerNote, list[Record]]:
        """Begin a container's partition with ``first``: its registration, its configuration.

        Returns its note with the slot that it was given, and its first records.

        Raises:
            CoreError: its mount namespace is that of a container that has not ended, or a record of
                it is larger than one may be.
            RecordError: a content has no canonical form.
        """
        other = self.in_namespace(note.mntns)
        if other is not None and note.kind == "container":
            raise CoreError(
                f"the mount namespace mnt:[{note.mntns}] belongs to container {other.note.id}"
            )
        partition = Partition(note.id)
        meta = self._meta({"time": time, "pid": note.pid})
        records = [partition.add(content, meta) for content in first]
        size = sum(map(_size, records))
        note = note.model_copy(update={"slot": self._table.take()})
        if note.line is not None and (before := self.run_of(note.line)) is not None:
            self._superseded.add(before.number)
        container = Container(note, secret, partition)
        self._index.add(container)
        if note.uid:
            self._grow(container, size)
        return note, records

    def _grow(self, container: Container, size: int) -> None:
        container.size += size
        if container.note.uid:
            self._of_users[container.note.uid] += size

    def restore(self, container: Container) -> None:
        """Take in a container with the slot and the records that it has already."""
        line = container.note.line
        before = None if line is None else self.run_of(line)
        self._table.take(container.note.slot)
        if before is not None:
            earlier = min(before, container, key=lambda one: one.note.run or 0)
            self._superseded.add(earlier.number)
        self._index.add(container)
        if container.note.uid:
            self._of_users[container.note.uid] += container.size

    def ended_before(self, until: int) -> list[int]:
        """Return the registrations that had ended ``until`` then.

        ``until`` is in nanoseconds since boot: a wall clock may jump.
        """
        ended = self._index.states.all("stopped")
        return [one.number for one in ended if (one.note.ended_ns or 0) <= until]

    def forget(self, registration: int) -> None:
        """Drop a container and give its slot back."""
        container = self._index.remove(registration)
        note = container.note
        if note.uid:
            self._of_users[note.uid] -= container.size
            if not self._index.users.count(note.uid):
                del self._of_users[note.uid]
        self._superseded.discard(registration)
        if note.line is not None and (latest := self.run_of(note.line)) is not None:
            # What came after it is gone.
            self._superseded.discard(latest.number)
        self._table.free(note.slot)

    def measure(self, event: Event, line: int | None, time: str) -> Record | None:
        """Measure what the sensor saw; None where the container has that file already.

        ``line`` is the index of the kernel's log line for the same digest and path. What is no
        file measurement becomes a ``violation`` or ``memory``. Where the container has reached its
        limit, one ``lost`` record says so, and all that it does after that is left out.

        Raises:
            CoreError: the container is not known, or has ended.
        """
        container = self._index.get(event.registration)
        if container is None:
            raise CoreError(f"an event of registration {event.registration}, which is not known")
        partition = container.partition
        meta = {"time": time, "pid": event.pid, "uid": event.uid, "ima_line": line}
        file = None
        if is_measured(event) and event.digest and event.path:
            file = (event.digest, event.path, Func[event.func.name])
        is_known = file is not None and partition.has_file(*file)
        if container.note.state == "stopped":
            # Read again after its end was recorded, if the agent was killed just then.
            if is_known:
                return None
            raise EndedError(container)
        if container.full or is_known:
            return None
        if reason := self._over_limit(container, event):
            container.full = True
            return self.lost(event.registration, None, reason, time)
        self._index.touch(event.registration)
        if file is None:
            return partition.add(content_of(event), self._meta(meta))
        digest, path, func = file
        return partition.add_file(digest, path, event.mntns, func, self._meta(meta))

    def _over_limit(self, container: Container, event: Event) -> str:
        """Return which limit the container would pass with this event's record; "" for none."""
        self._grow(container, _LINE + 2 * len(event.path or b""))
        own, uid = self._limits(), container.note.uid
        if container.partition.count >= own.records:
            return f"the container's limit of {own.records} records is reached"
        if container.size > own.bytes:
            return f"the container's limit of {own.bytes} bytes of records is reached"
        if uid and self._of_users[uid] > limits.USER_BYTES:
            return f"the user's limit of {limits.USER_BYTES} bytes of records is reached"
        return ""

    def add(self, registration: int, content: Content, time: str) -> Record:
        """Record a content.

        Raises:
            CoreError: the record is larger than one may be.
            RecordError: the content has no canonical form.
        """
        container, meta = self._index[registration], self._meta({"time": time})
        partition = container.partition
        if isinstance(content, contents.Rootfs):
            size = _size(Partition("").add(content, meta))
            if container.note.uid:
                self._grow(container, size)
        record = partition.add(content, meta)
        self._index.touch(registration)
        return record

    def add_file(
        self, registration: int, digest: bytes, path: bytes, *, func: Func, line: int, time: str
    ) -> Record | None:
        """Record a file that the kernel's log has at ``line``; None where it is there already."""
        container = self._index[registration]
        if container.partition.has_file(digest, path, func):
            return None
        self._index.touch(registration)
        container.last_line = max(line, container.last_line or 0)
        meta = self._meta({"time": time, "ima_line": line})
        return container.partition.add_file(digest, path, container.note.mntns, func, meta)

    def lost(
        self,
        registration: int,
        count: int | None,
        reason: str,
        time: str,
        mntns: int | None = None,
    ) -> Record:
        """Record that ``count`` events (None: nobody knows how many) never arrived.

        ``mntns`` is the mount namespace of the last, where it is not the container's own.
        """
        content = contents.Lost(count=count, reason=reason, mntns=mntns)
        return self.add(registration, content, time)

    def dropped(self, registration: int, count: int, time: str, mntns: int | None = None) -> Record:
        """Record that the sensor dropped ``count`` more events of a container."""
        self._index[registration].dropped += count
        return self.lost(registration, count, SENSOR_DROPPED, time, mntns)

    def end(self, registration: int, reason: str, time: str, since_boot: int) -> Record:
        """Record a container's end; its leaf stays as it then is.

        ``since_boot`` is the same time in nanoseconds since boot.
        """
        record = self.add(registration, contents.Exit(reason=reason), time)
        self._index.update(registration, state="stopped", ended=time, ended_ns=since_boot)
        return record

    def update(self, registration: int, **changes: Any) -> ContainerNote:
        """Change fields of a container's note, and return the note."""
        return self._index.update(registration, **changes)

    def update_table(self) -> bytes:
        """Bring the table up to date with every register, and return its digest."""
        for container in self._index.changed.values():
            partition = container.partition
            value = inner(container.secret, partition.cpcr, partition.count)
            self._table.set(container.note.slot, value)
        self._index.unchanged()
        return self._table.digest

    def bound(self, keep: Collection[int]) -> list[Container]:
        """Heed that the table was bound: runs that others of their line follow are let go of.

        Returns them. Those in ``keep`` wait for the next bind.
        """
        gone = [self._index[number] for number in self._superseded if number not in keep]
        for container in gone:
            self.forget(container.number)
        return gone

    def _meta(self, meta: Mapping[str, Any]) -> Mapping[str, Any]:
        return {**meta, "missing": list(self.missing)} if self.missing else meta


def _size(record: Record) -> int:
    """Return a record's bytes on disk, which whoever reads it must take.

    Raises:
        CoreError: they are more than any reader takes.
    """
    size = len(record.to_line())
    if size > limits.RECORD:
        raise CoreError(
            f"its {record.content.get('type')} record has {size} bytes, more than {limits.RECORD}"
        )
    return size


def dropped_in(records: Iterable[Record]) -> int:
    """Return how many events these records say that the sensor dropped.

    Of what a newer agent wrote, and is not known here, none: too little is said again, no more.
    """
    found = 0
    for record in records:
        if record.content.get("type") == "lost":
            with suppress(RecordError):
                content = contents.read(record)
                if isinstance(content, contents.Lost) and content.reason == SENSOR_DROPPED:
                    found += content.count or 0
    return found
