"""Loads the sensor into the kernel, tells it what to watch, and takes its events.

What is watched, and what was lost, is kept in the sensor's maps, which are pinned: the sensor works
on while no agent runs, and the next one finds everything as it is. One of another version is taken
over without a moment in which nobody watches.
"""

import ctypes
import errno
import hashlib
import logging
import mmap
import os
import platform
import secrets
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from cima_runc.base.errors import CimaError
from cima_runc.base.text import printable
from cima_runc.sensor.events import Event, parse
from cima_runc.sensor.hooks import TASKS, Choice, choose, missing_for
from cima_runc.sensor.libbpf import Libbpf
from cima_runc.sensor.options import PATH_KEY_BYTES, Options
from cima_runc.sensor.overdue import Overdue
from cima_runc.sensor.pins import DIRECTORY, Handles, Pins
from cima_runc.sensor.ring import RingReader
from cima_runc.sensor.tables import (
    LAYOUT,
    MAPS,
    SHARED,
    Flag,
    Row,
    Tables,
    Watched,
)

_log = logging.getLogger(__name__)

OBJECT: Final = Path(__file__).with_name("sensor.bpf.o")
"""The compiled sensor, made when the package was built."""

_LOCKDOWN = Path("/sys/kernel/security/lockdown")
_FTRACE = Path("/proc/sys/kernel/ftrace_enabled")
_LSMS: Final = Path("/sys/kernel/security/lsm")
_BTF: Final = Path("/sys/kernel/btf/vmlinux")
_CAP_SYS_ADMIN: Final = 21
_CAP_PERFMON: Final = 38
_CAP_BPF: Final = 39

_FINISH_SECONDS: Final = 10.0
"""How long a sensor that is taken over may take for files that are being hashed: 4 GiB, about."""
_FINISH_PAUSE_SECONDS: Final = 0.005

_SYS_FSOPEN: Final = 430
"""x86-64's number of fsopen(2)."""
_SHA256_BYTES: Final = 32


class SensorError(CimaError):
    """The sensor cannot do what was asked of it."""


class SensorUnavailableError(SensorError):
    """The sensor cannot run here."""


class SwitchedOffError(SensorUnavailableError):
    """The kernel was told to call no program that is attached to its functions."""


class NotBuiltError(SensorUnavailableError):
    """The package was installed without the compiled sensor."""


class NoLibbpfError(SensorUnavailableError):
    """libbpf is not installed."""


class LockdownError(SensorUnavailableError):
    """Kernel lockdown forbids what the sensor does (kernel_lockdown(7))."""


class NoBpfLsmError(SensorUnavailableError):
    """The kernel was started without the BPF LSM."""


class NoBtfError(SensorUnavailableError):
    """The kernel was built without type information."""


class NoPrivilegeError(SensorUnavailableError):
    """This process may not load BPF programs."""


class NoHookError(SensorUnavailableError):
    """The kernel lacks a function without which nothing can be measured."""


class RejectedError(SensorUnavailableError):
    """The kernel refused the sensor's programs or maps."""


@dataclass(frozen=True, slots=True)
class Lost:
    """What a container did that never became an event."""

    registration: int
    dropped: int
    """Events for which the ring had no room, and namespaces that could not be followed."""
    missed: int
    """Runs that the kernel skipped for any container at all while this one was watched, and changes
    to files that it may have used, where more containers use one than are remembered."""

    @property
    def total(self) -> int:
        """Both together: an upper bound where ``missed`` is not 0."""
        return self.dropped + self.missed


@dataclass(frozen=True, slots=True)
class SensorStatus:
    """The sensor as it is now."""

    kernel: str
    """The running kernel's release."""
    programs: tuple[str, ...]
    """Names of the programs that are attached."""
    watched: int
    """Containers."""
    nested: int
    """Mount namespaces that those containers made themselves."""
    ring_bytes: int
    dropped: int
    """Events dropped since the sensor was loaded, over all containers."""
    missed: int
    """Runs of a program that the kernel skipped since the sensor was loaded."""
    full: int
    """Digests for which the sensor had no room."""


@dataclass(frozen=True, slots=True)
class Rights:
    """What a container's processes may have and do, as far as the sensor looks at it."""

    pid: int = 0
    """Its first process, in the initial pid namespace; 0: whichever executes something first."""
    root_device: int | None = None
    """The kernel's ``dev_t`` of its root where that is an overlay of its own: it cannot write the
    lower layers."""
    bounding: int | None = None
    """Bits of the capabilities that its processes can have; None: what its first one has."""
    seccomp: bool = False
    """Whether its processes have a seccomp filter."""
    deny_memory: bool = False
    """Whether executable memory is refused."""

    def flags(self) -> int:
        """Return ``enum registration_flag`` of sensor.h."""
        return (
            (Flag.BOUNDING_KNOWN if self.bounding is not None else 0)
            | (Flag.SECCOMP_SEEN if self.seccomp else 0)
            | (Flag.DENY_MEMORY if self.deny_memory else 0)
        )


class Sensor:
    """The sensor in the kernel. For one thread, but for :meth:`fileno` and :meth:`mark_of`.

    Events are taken in two steps: :meth:`events` reads them, :meth:`release` gives their room
    back. What was not released is read again by whoever opens the sensor next.
    """

    def __init__(
        self,
        libbpf: Libbpf,
        handles: Handles,
        pins: Pins | None = None,
        older: Sequence["_Older"] = (),
    ) -> None:
        self._handles = handles
        self._pins = pins
        self._older = list(older)
        self._libbpf = libbpf
        self._tables = Tables(libbpf, handles)
        self._ring_bytes = libbpf.map_max_entries(handles.maps["events"])
        self._ring = RingReader(handles.maps["events"], self._ring_bytes)
        self._containers = {row.mntns: number for number, row in self._tables.rows()}
        self._lost: dict[int, int] = {}
        self._lost_at: tuple[int, int, int] | None = None
        self._overdue = Overdue()
        self._never_sent: dict[int, int] = {}
        self._made_up_for = 0
        """Times that the kernel skipped what sends a use, after which nothing waited any more."""
        self._closed = False

    @classmethod
    def load(cls, options: Options = Options()) -> Self:  # noqa: B008 - frozen
        """Load a sensor that is gone when it is closed; nothing is watched yet.

        Raises a :class:`SensorUnavailableError` that says which thing is missing.
        """
        elf, libbpf = _prepare(options)
        try:
            return cls(libbpf, _load(libbpf, elf, options, {}))
        except OSError as error:
            raise _rejected(error, libbpf.messages) from error

    @classmethod
    def open(
        cls,
        directory: Path = DIRECTORY,
        options: Options = Options(),  # noqa: B008 - frozen
    ) -> Self:
        """Open the sensor that is pinned below ``directory``, as another process left it.

        Where there is none of this version with these options, one is loaded. It watches what an
        older one watches before that one is detached; what the older one saw comes first, and what
        both saw comes twice.

        Raises:
            SensorUnavailableError: as for :meth:`load`.
            PinsError: as for :meth:`Pins.open`.
        """
        elf, libbpf = _prepare(options)
        pins = Pins.open(libbpf, directory)
        try:
            return cls._open(libbpf, pins, elf, options)
        except OSError as error:
            pins.close()
            raise _rejected(error, libbpf.messages) from error
        except BaseException:
            pins.close()
            raise

    @classmethod
    def _open(cls, libbpf: Libbpf, pins: Pins, elf: bytes, options: Options) -> Self:
        loaded = hashlib.sha256(repr(options).encode("ascii") + elf).hexdigest()[:16]
        name = f"{LAYOUT}-{loaded}"
        if name in pins.names() and not pins.whole(name):
            pins.set_aside(name)
        names = pins.names()
        older = []
        shared: dict[str, int] = {}
        for other in names:
            if other == name:
                continue
            try:
                if other.partition("-")[0] != str(LAYOUT):
                    raise OSError(errno.EPROTO, "it has another layout")
                older.append(_Older(libbpf, other, pins.open_sensor(other)))
                if pins.whole(other):
                    shared = older[-1].shared()
            except (OSError, KeyError) as error:
                _log.warning("what the sensor %s holds is lost: %s", other, error)
                pins.remove(other)
        if name not in names:
            handles = _load(libbpf, elf, options, shared)
            pins.pin(name, handles, MAPS)
            handles.close()
        sensor = cls(libbpf, pins.open_sensor(name), pins, older)
        for one in older:
            # One that is detached was taken over before: its tables are not kept up any more,
            # and only its last events are still wanted.
            if pins.whole(one.name):
                sensor._take_over(one)
                sensor._let_finish(one)
                pins.detach(one.name)
                one.stop()
        return sensor

    def fileno(self) -> int:
        """Return the descriptor that is readable while there are events that were not released."""
        return self._handles.maps["events"]

    def registrations(self) -> set[int]:
        """Return the numbers of all containers that are watched, by whichever process."""
        return set(self._containers.values())

    def allowlist(self, digests: Collection[bytes]) -> int:
        """Return the descriptor of a list of SHA-256 digests for :meth:`watch`; the caller's.

        Raises:
            OSError: the kernel has no room for it.
        """
        # A hash map has one entry at least; nothing has the digest of zeros.
        return self._libbpf.hash_of("allowlist", digests or [bytes(_SHA256_BYTES)])

    def watch(
        self,
        mntns: int,
        registration: int,
        cgroup_id: int,
        allowlist: int | None = None,
        rights: Rights = Rights(),
    ) -> None:
        """Report from now on what runs in the mount namespace with the inode number ``mntns``.

        ``registration`` is any number but 0, never used before; events carry it. The caller holds
        the namespace open until :meth:`unwatch`, so that the number stays that namespace's. A
        namespace that was counted as nested in another container becomes this one's. Nothing that
        is not in ``allowlist``, the descriptor of :meth:`allowlist`, can be executed or mapped
        executable there. ``rights`` is what its processes may have and do.
        """
        check_switch()
        if not registration:
            raise SensorError("0 is not a registration number")
        if mntns in self._containers:
            raise SensorError(
                f"mount namespace {mntns} is watched already, as {self._containers[mntns]}"
            )
        row = Row(
            cgroup_id,
            0,
            0,
            self._tables.missed(),
            mntns,
            root_dev=rights.root_device or 0,
            bounding=rights.bounding or 0,
            flags=rights.flags(),
            pid=rights.pid,
        )
        try:
            self._tables.put_row(registration, row, new=True)
            try:
                if allowlist is not None:
                    self._tables.put_allowlist(registration, allowlist)
                if rights.root_device is not None:
                    self._tables.put_root(rights.root_device, registration)
                self._tables.put_namespace(mntns, Watched(registration, 0, 0), new=False)
            except BaseException:
                self._tables.remove_row(registration)
                raise
        except OSError as error:
            if error.errno == errno.EEXIST:
                raise SensorError(f"the registration number {registration} is in use") from error
            if error.errno == errno.E2BIG:
                raise SensorError("the sensor watches as many namespaces as it can") from error
            raise SensorError(f"the sensor cannot watch {mntns}: {error.strerror}") from error
        self._containers[mntns] = registration

    def unwatch(self, registration: int) -> Lost:
        """Stop watching a container, its nested namespaces with it; returns the final counts.

        Events that are in the ring already stay there, and the counts are kept until
        :meth:`forget`. Raises :class:`SensorError` where the container was not watched.
        """
        row = self._tables.row(registration)
        if row is None:
            raise SensorError(f"no container is watched as {registration}")
        self._containers.pop(row.mntns, None)
        # Where nobody held the namespace, its number may be another one's by now.
        entry = self._tables.namespace(row.mntns)
        if entry is not None and entry.registration == registration:
            self._tables.remove_namespace(row.mntns)
        row = self._tables.end_row(registration) or row
        # From here on the kernel adds no nested namespace of this one, so the count can be trusted.
        if row.nested:
            for mntns, entry in self._tables.namespaces():
                if entry.registration == registration:
                    self._tables.remove_namespace(mntns)
        self._tables.remove_allowlist(registration)
        if row.root_dev:
            self._tables.remove_root(row.root_dev, registration)
        self._lost.pop(registration, None)
        self._never_sent.pop(registration, None)
        return self._lost_by(registration, row)

    def mark_of(self, pidfd: int) -> int | None:
        """Return the container that a process is of, wherever it has gone since it was there; None
        for no container's. May be asked in any thread.

        Raises:
            OSError: the descriptor is no pidfd.
        """
        return self._tables.mark_of(pidfd)

    def unwatched(self) -> dict[int, Lost]:
        """Return the final counts of the containers that are not watched and not forgotten."""
        return {number: self._lost_by(number, row) for number, row in self._tables.ended_rows()}

    def forget(self, registration: int) -> None:
        """Forget the final counts of a container that is not watched any more."""
        self._tables.remove_ended_row(registration)

    def events(self, batch: int) -> Iterator[list[Event]]:
        """Yield the events that were complete when this was called, oldest first.

        Lists of at most ``batch`` events. Never waits for new ones.
        """
        rings = [(ring, ring.end) for ring in (*(one.ring for one in self._older), self._ring)]
        for ring, end in rings:
            while records := ring.read(batch, end):
                yield [parse(record) for record in records]

    def release(self) -> None:
        """Give back the room of all events that :meth:`events` has yielded."""
        self._ring.release()
        for one in list(self._older):
            one.ring.release()
            if one.ring.empty:
                self._older.remove(one)
                one.close()
                assert self._pins is not None
                self._pins.remove(one.name)

    def lost(self) -> dict[int, int]:
        """Return the registrations that lost something since they were watched, and how much.

        An upper bound where the kernel skipped a program: that counts for every container.
        """
        missed = self._tables.missed()
        now = (self._tables.dropped, missed, self._tables.unattributed)
        if now != self._lost_at:
            found = {
                number: self._lost_by(number, row).total for number, row in self._tables.rows()
            }
            self._lost = {registration: lost for registration, lost in found.items() if lost}
            self._lost_at = now
        return dict(Counter(self._lost) + Counter(self._overdue_now()))

    def _overdue_now(self) -> dict[int, int]:
        """Return how many uses of each container wait for far too long."""
        now = time.monotonic()
        if self._overdue.is_due(now):
            unsent = self._tables.unsent()
            rows = self._tables.rows() if unsent != self._made_up_for else ()
            waiting = {number: row.waiting for number, row in rows if row.waiting > 0}
            if not waiting:
                self._made_up_for = unsent
            for number, count in self._overdue.look(waiting, now).items():
                self._never_sent[number] = max(count, self._never_sent.get(number, 0))
        return self._never_sent

    @property
    def missing_hooks(self) -> tuple[str, ...]:
        """Functions that the running kernel does not have, and what they see is not seen."""
        return missing_for(self._handles.programs)

    def lost_in(self, registration: int) -> int | None:
        """Return the mount namespace in which the last event was lost, where not the container's
        own."""
        row = self._tables.row(registration)
        return (row.dropped_in or None) if row is not None else None

    def status(self) -> SensorStatus:
        """Return what is attached, watched and lost."""
        return SensorStatus(
            kernel=platform.release(),
            programs=tuple(sorted(self._handles.programs)),
            watched=len(self._containers),
            nested=sum(row.nested for _, row in self._tables.rows()),
            ring_bytes=self._ring_bytes,
            dropped=self._tables.dropped,
            missed=self._tables.missed(),
            full=self._tables.full,
        )

    def close(self) -> None:
        """Let go of the sensor: one that is pinned works on, another one is gone."""
        if self._closed:
            return
        self._closed = True
        self._ring.close()
        self._tables.close()
        self._handles.close()
        for one in self._older:
            one.close()
        if self._pins is not None:
            self._pins.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _lost_by(self, registration: int, row: Row) -> Lost:
        missed = self._tables.missed() - row.missed_before
        return Lost(
            registration, row.dropped, missed + self._tables.unattributed_to(registration, row)
        )

    def _take_over(self, older: "_Older") -> None:
        """Watch what an older sensor watches, while that one still does."""
        missed = self._tables.missed()
        here = self._tables.unattributed_in
        taken = []
        for number, row in older.tables.ended_rows():
            if number not in self._containers.values():
                before = missed - older.lost(number, row)
                last = row._replace(dropped=0, missed_before=before, **here(number))
                self._tables.put_ended_row(number, last)
        # Programs count in a row from the moment that it is there, and what they count meanwhile is
        # lost where it is written again: so it begins with as many namespaces as will be copied.
        nested = _nested(older.tables)
        for number, row in older.tables.rows():
            if number in self._containers.values():
                continue
            before = missed - older.lost(number, row)
            fresh = row._replace(
                dropped=0,
                nested=nested[number],
                waiting=0,
                missed_before=before,
                **here(number),
            )
            self._tables.put_row(number, fresh, new=True)
            self._take_over_allowlist(older, number)
            self._containers[row.mntns] = number
            taken.append(number)
            # Where its namespace is gone, the row alone says what was lost, until the end is noted.
            entry = older.tables.namespace(row.mntns)
            if entry is not None and entry.registration == number:
                self._copy_namespace(older, row.mntns, entry)
            late = older.tables.row(number)
            if late is not None and late.dropped != row.dropped:
                # This ring is new: nothing of this container can have been dropped from it yet.
                now = self._tables.row(number) or fresh
                now = now._replace(missed_before=missed - older.lost(number, late))
                self._tables.put_row(number, now, new=False)
        # A namespace that is made meanwhile is added by the older sensor alone where that one alone
        # knows the namespace that it is made from: so again, until nothing comes to it.
        known: set[int] = set()
        while new := {
            mntns: entry
            for mntns, entry in older.tables.namespaces()
            if entry.nested and mntns not in known
        }:
            known.update(new)
            for mntns, entry in new.items():
                self._copy_namespace(older, mntns, entry)
        nested = _nested(self._tables)
        for number in taken:
            found = self._tables.row(number)
            if found is not None and found.nested != nested[number]:
                self._tables.put_row(number, found._replace(nested=nested[number]), new=False)

    def _let_finish(self, older: "_Older") -> None:
        """Wait until an older sensor has sent each use that waited for its digest when this one
        began to watch: nobody else will. What it has not in time counts as lost."""
        until = time.monotonic() + _FINISH_SECONDS
        waiting = {number: row.waiting for number, row in older.tables.rows() if row.waiting > 0}
        while waiting and time.monotonic() < until:
            time.sleep(_FINISH_PAUSE_SECONDS)
            rows = ((number, older.tables.row(number)) for number in waiting)
            waiting = {number: row.waiting for number, row in rows if row and row.waiting > 0}
        for number, count in waiting.items():
            row = self._tables.row(number)
            if row is not None:
                self._tables.put_row(number, row._replace(dropped=row.dropped + count), new=False)

    def _take_over_allowlist(self, older: "_Older", registration: int) -> None:
        allowlist = older.tables.open_allowlist(registration)
        if allowlist is not None:
            try:
                self._tables.put_allowlist(registration, allowlist)
            finally:
                os.close(allowlist)

    def _copy_namespace(self, older: "_Older", mntns: int, entry: Watched) -> None:
        try:
            self._tables.put_namespace(mntns, entry, new=True)
        except OSError as error:
            if error.errno == errno.EEXIST:
                return
            raise
        if older.tables.namespace(mntns) is None:
            # It ended before it was here to be removed.
            self._tables.remove_namespace(mntns)


def _nested(tables: Tables) -> Counter[int]:
    """Return how many namespaces of its own each container has."""
    return Counter(entry.registration for _, entry in tables.namespaces() if entry.nested)


class _Older:
    """A sensor of another version, whose last events are still to be read."""

    def __init__(self, libbpf: Libbpf, name: str, handles: Handles) -> None:
        self.name = name
        self._handles = handles
        self.tables = Tables(libbpf, handles)
        events = handles.maps["events"]
        self.ring = RingReader(events, libbpf.map_max_entries(events))

    def stop(self) -> None:
        """Have its programs refuse and report nothing: the kernel detaches them in its own time."""
        for mntns, _ in list(self.tables.namespaces()):
            self.tables.remove_namespace(mntns)
        for number, _ in list(self.tables.rows()):
            self.tables.remove_row(number)

    def shared(self) -> dict[str, int]:
        """Return the descriptors of the maps that a newer sensor goes on with."""
        return {name: self._handles.maps[name] for name in SHARED}

    def lost(self, registration: int, row: Row) -> int:
        """Return what a container of this sensor has lost."""
        missed = self.tables.missed() - row.missed_before
        return row.dropped + missed + self.tables.unattributed_to(registration, row)

    def close(self) -> None:
        """Let go of it."""
        self.ring.close()
        self.tables.close()
        self._handles.close()


def _prepare(options: Options) -> tuple[bytes, Libbpf]:
    ring_bytes = options.ring_bytes
    if ring_bytes < mmap.PAGESIZE or ring_bytes & (ring_bytes - 1):
        raise SensorError(
            f"a ring buffer of {ring_bytes} bytes is not possible",
            hint=f"use a power of two from {mmap.PAGESIZE} on",
        )
    elf = _read_object()
    libbpf = _load_libbpf()
    check_kernel()
    return elf, libbpf


def _load(libbpf: Libbpf, elf: bytes, options: Options, shared: Mapping[str, int]) -> Handles:
    """Load the sensor into the kernel, with the maps ``shared`` of an older one, and attach it."""
    _load_overlay()
    obj = libbpf.object_open(elf)
    links: dict[str, int] = {}
    try:
        choice = _choose(libbpf, options)
        libbpf.map_set_max_entries(libbpf.map(obj, "events"), options.ring_bytes)
        if "digests" not in shared:
            libbpf.map_set_max_entries(libbpf.map(obj, "digests"), options.digests)
        settings = options.settings(
            secrets.token_bytes(PATH_KEY_BYTES),
            late=choice.late,
            hooks_missing=not choice.sees_writes,
            casts=choice.casts,
        )
        libbpf.map_set_initial_value(libbpf.map(obj, ".rodata"), settings)
        for name, handle in shared.items():
            libbpf.map_reuse(libbpf.map(obj, name), handle)
        programs = dict(libbpf.programs(obj))
        for name, program in programs.items():
            if name in choice.programs or name == TASKS:
                libbpf.program_load_too(program)
            else:
                libbpf.program_leave_out(program)
        libbpf.object_load(obj)
        for name in choice.programs:
            link = libbpf.program_attach(programs[name])
            links[name] = os.dup(libbpf.link_fd(link))
            libbpf.link_destroy(link)
        if not shared:
            link = libbpf.program_attach(programs[TASKS])
            try:
                libbpf.run_iterator(link)
            finally:
                libbpf.link_destroy(link)
        return Handles(
            {name: os.dup(libbpf.map_fd(libbpf.map(obj, name))) for name in MAPS},
            {name: os.dup(libbpf.program_fd(programs[name])) for name in choice.programs},
            links,
        )
    except BaseException:
        for handle in links.values():
            os.close(handle)
        raise
    finally:
        libbpf.object_close(obj)


def _choose(libbpf: Libbpf, options: Options) -> Choice:
    types = libbpf.kernel_types()
    try:
        choice = choose(lambda name: libbpf.arguments(types, name), reads=bool(options.reads))
    except LookupError as error:
        raise NoHookError(
            f"Linux {platform.release()} has no {printable(str(error.args[0]))}",
            hint="boot a kernel of Linux 6.1 or later, as Debian 12's",
        ) from error
    if choice.missing:
        _log.warning("this kernel has no %s", ", ".join(choice.missing))
    if not choice.sees_writes:
        _log.error("no digest can be believed on this kernel: all that runs is unstable")
    return choice


def _load_overlay() -> None:
    """Have the kernel load overlayfs, to whose types the programs are fitted."""
    libc = ctypes.CDLL(None, use_errno=True)
    context = libc.syscall(_SYS_FSOPEN, b"overlay", 0)
    if context >= 0:
        os.close(context)


def _read_object() -> bytes:
    try:
        return OBJECT.read_bytes()
    except OSError as error:
        raise NotBuiltError(
            f"the compiled sensor cannot be read: {printable(str(OBJECT))}: {error.strerror}",
            hint="install the package again, where clang and libbpf-dev are installed",
        ) from error


def _load_libbpf() -> Libbpf:
    try:
        return Libbpf()
    except (OSError, AttributeError) as error:
        raise NoLibbpfError(
            f"libbpf 1.0 or later is not there: {printable(str(error))}",
            hint="apt install libbpf1",
        ) from error


def check_kernel() -> None:
    """Look whether the sensor can run here, without loading it.

    Raises:
        SensorUnavailableError: names what is missing, where the kernel gives only an errno.
    """
    if not _privileged():
        raise NoPrivilegeError(
            "loading the sensor takes the capabilities CAP_BPF and CAP_PERFMON",
            hint="run as root on the host itself, outside of any container",
        )
    check_switch()
    if not _BTF.exists():
        raise NoBtfError(
            f"the kernel has no type information ({_BTF})",
            hint="boot a kernel built with CONFIG_DEBUG_INFO_BTF=y, as Debian's are",
        )
    try:
        active = _LSMS.read_text().strip()
    except OSError as error:
        raise NoBpfLsmError(
            f"{_LSMS} cannot be read: {error.strerror}",
            hint="mount -t securityfs securityfs /sys/kernel/security",
        ) from error
    if "bpf" not in active.split(","):
        raise NoBpfLsmError(
            f"the BPF LSM is not active, only {printable(active)}",
            hint=f"add lsm={printable(_with_bpf(active))} to the kernel's command line and reboot",
        )

    try:
        lockdown = _LOCKDOWN.read_text()
    except OSError:
        lockdown = ""
    if "[confidentiality]" in lockdown:
        raise LockdownError(
            "the kernel is locked down for confidentiality, which keeps BPF from reading",
            hint="start the kernel with lockdown=integrity, or with none",
        )


def check_switch() -> None:
    """Look whether the kernel calls programs like the sensor's at all.

    Raises:
        SwitchedOffError: it does not, of which nothing else would tell.
    """
    try:
        enabled = _FTRACE.read_text().strip()
    except OSError:  # a kernel without this switch
        return
    if enabled == "0":
        raise SwitchedOffError(
            "kernel.ftrace_enabled is 0, so that the kernel calls no program of the sensor",
            hint="sysctl kernel.ftrace_enabled=1, and remove the setting from /etc/sysctl.d",
        )


def _with_bpf(active: str) -> str:
    """Return the kernel parameter that keeps what is active and adds the BPF LSM.

    "capability" is always there and not part of it. "integrity" is never listed but must be in it:
    without it 6.1 panics as soon as IMA measures a file; 6.12 does not mind it.
    """
    names = [name for name in active.split(",") if name and name != "capability"]
    return ",".join([*names, "integrity", "bpf"])


def _privileged() -> bool:
    status = Path("/proc/self/status").read_text()
    effective = next(line for line in status.splitlines() if line.startswith("CapEff:"))
    has = int(effective.split()[1], 16)
    return bool(has >> _CAP_SYS_ADMIN & 1 or (has >> _CAP_BPF & 1 and has >> _CAP_PERFMON & 1))


def _rejected(error: OSError, messages: Iterable[str]) -> RejectedError:
    lines = [line.strip() for message in messages for line in message.splitlines()]
    hint = "is another system's policy (lockdown, a container) in the way?"
    return RejectedError(
        f"the kernel refused the sensor: {os.strerror(error.errno or 0)}: "
        + printable(_reason(lines)),
        hint=hint if error.errno == errno.EPERM else "",
    )


def _reason(lines: list[str]) -> str:
    """Return the verifier's last word in what libbpf printed, or libbpf's own first one."""
    end = "-- END PROG LOAD LOG --"
    if end in lines:
        log = lines[: lines.index(end)]
        said = [line for line in log if line and not line.startswith(("processed ", "libbpf:"))]
        if said:
            return said[-1]
    return next(iter(lines), "no reason given")
