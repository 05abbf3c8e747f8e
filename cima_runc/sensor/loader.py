"""Loads the sensor into the kernel, tells it what to watch, and takes its events.

What is watched, and what was lost, is kept in the sensor's maps and nowhere else but for the table
of namespaces by which the caller names containers; sensor.h says what is in them.
"""

import errno
import mmap
import os
import platform
import secrets
import struct
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

from cima_runc import limits
from cima_runc.errors import CimaError
from cima_runc.sensor.events import Event, parse
from cima_runc.sensor.libbpf import BPF_NOEXIST, Libbpf
from cima_runc.sensor.ring import RingReader
from cima_runc.text import printable

RING_BYTES: Final = 16 * limits.MIB
"""Size of the ring buffer: room for some 90,000 events with paths of 40 bytes."""

OBJECT: Final = Path(__file__).with_name("sensor.bpf.o")
"""The compiled sensor, made when the package was built."""

_LSMS: Final = Path("/sys/kernel/security/lsm")
_BTF: Final = Path("/sys/kernel/btf/vmlinux")
_CAP_SYS_ADMIN: Final = 21
_CAP_PERFMON: Final = 38
_CAP_BPF: Final = 39

_MNTNS: Final = struct.Struct("=I")
_REGISTRATION_KEY: Final = struct.Struct("=Q")
_WATCHED: Final = struct.Struct("=QQ")
_REGISTRATION: Final = struct.Struct("=QQqQQ")
_PATH_KEY_BYTES: Final = 16
_WATCHED_MAX: Final = 65536
_REGISTRATIONS_MAX: Final = 16384

_HARMLESS_WHEN_MISSED: Final = "cima_free_inum"
"""The program that may be skipped: an entry that outlives its namespace matches no other one."""


class SensorError(CimaError):
    """The sensor cannot do what was asked of it."""


class SensorUnavailableError(SensorError):
    """The sensor cannot run here."""


class NotBuiltError(SensorUnavailableError):
    """The package was installed without the compiled sensor."""


class NoLibbpfError(SensorUnavailableError):
    """libbpf is not installed."""


class NoBpfLsmError(SensorUnavailableError):
    """The kernel was started without the BPF LSM."""


class NoBtfError(SensorUnavailableError):
    """The kernel was built without type information."""


class NoPrivilegeError(SensorUnavailableError):
    """This process may not load BPF programs."""


class RejectedError(SensorUnavailableError):
    """The kernel refused the sensor's programs or maps."""


@dataclass(frozen=True, slots=True)
class Lost:
    """What a container did that never became an event."""

    registration: int
    dropped: int
    """Events for which the ring had no room, and namespaces that could not be followed."""
    missed: int
    """Runs that the kernel skipped for any container at all while this one was watched."""

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


class Sensor:
    """The sensor in the kernel, attached until it is closed.

    One thread may :meth:`drain` while another uses the other methods.
    """

    def __init__(self, libbpf: Libbpf, obj: int, ring_bytes: int) -> None:
        self._libbpf = libbpf
        self._obj = obj
        self._ring_bytes = ring_bytes
        self._watched, self._registrations, self._events, totals = (
            libbpf.map_fd(libbpf.map(obj, name))
            for name in ("watched", "registrations", "events", "totals")
        )
        self._programs = {name: libbpf.program_fd(p) for name, p in libbpf.programs(obj)}
        self._ring = RingReader(self._events, ring_bytes)
        self._totals = mmap.mmap(totals, mmap.PAGESIZE, mmap.MAP_SHARED, mmap.PROT_READ)
        self._links: list[int] = []
        self._containers: dict[int, int] = {}
        self._lost: dict[int, int] = {}
        self._lost_at = (0, 0)

    @classmethod
    def load(cls, *, ring_bytes: int = RING_BYTES) -> Self:
        """Load the sensor into the kernel and attach it; nothing is watched yet.

        ``ring_bytes`` is a power of two, at least one page. Raises a
        :class:`SensorUnavailableError` that says which thing is missing.
        """
        if ring_bytes < mmap.PAGESIZE or ring_bytes & (ring_bytes - 1):
            raise SensorError(
                f"a ring buffer of {ring_bytes} bytes is not possible",
                hint=f"use a power of two from {mmap.PAGESIZE} on",
            )
        elf = _read_object()
        libbpf = _load_libbpf()
        check_kernel()
        obj, sensor = 0, None
        try:
            obj = libbpf.object_open(elf)
            libbpf.map_set_max_entries(libbpf.map(obj, "events"), ring_bytes)
            key = secrets.token_bytes(_PATH_KEY_BYTES)
            libbpf.map_set_initial_value(libbpf.map(obj, ".rodata"), key)
            libbpf.object_load(obj)
            sensor = cls(libbpf, obj, ring_bytes)
            sensor._attach()
        except OSError as error:
            if sensor is not None:
                sensor.close()
            elif obj:
                libbpf.object_close(obj)
            raise _rejected(error, libbpf.messages) from error
        return sensor

    def fileno(self) -> int:
        """Return the descriptor that becomes readable when there are events."""
        return self._events

    def watch(self, mntns: int, registration: int, cgroup_id: int) -> None:
        """Report from now on what runs in the mount namespace with the inode number ``mntns``.

        ``registration`` is any number but 0, never used before; events carry it. The caller holds
        the namespace open until :meth:`unwatch`, so that the number stays that namespace's. A
        namespace that was counted as nested in another container becomes this one's.
        """
        if not registration:
            raise SensorError("0 is not a registration number")
        if mntns in self._containers:
            raise SensorError(
                f"mount namespace {mntns} is watched already, as {self._containers[mntns]}"
            )
        key = _REGISTRATION_KEY.pack(registration)
        value = _REGISTRATION.pack(cgroup_id, 0, 0, self._missed(), mntns)
        try:
            self._libbpf.update(self._registrations, key, value, BPF_NOEXIST)
            try:
                self._libbpf.update(
                    self._watched, _MNTNS.pack(mntns), _WATCHED.pack(registration, 0)
                )
            except BaseException:
                self._libbpf.delete(self._registrations, key)
                raise
        except OSError as error:
            if error.errno == errno.EEXIST:
                raise SensorError(f"the registration number {registration} is in use") from error
            if error.errno == errno.E2BIG:
                raise SensorError("the sensor watches as many namespaces as it can") from error
            raise SensorError(f"the sensor cannot watch {mntns}: {error.strerror}") from error
        self._containers[mntns] = registration

    def unwatch(self, mntns: int) -> Lost:
        """Stop watching a container, its nested namespaces with it; returns the final counts.

        Events that are in the ring already stay there. Raises :class:`SensorError` where the
        namespace was not watched.
        """
        registration = self._containers.pop(mntns, None)
        if registration is None:
            raise SensorError(f"mount namespace {mntns} is not watched")
        self._libbpf.delete(self._watched, _MNTNS.pack(mntns))
        key = _REGISTRATION_KEY.pack(registration)
        raw = self._libbpf.take(self._registrations, key, _REGISTRATION.size)
        if raw is None:
            raise SensorError(f"the sensor's table has lost registration {registration}")
        # From here on the kernel adds no nested namespace of this one, so the count can be trusted.
        row = _Row(*_REGISTRATION.unpack(raw))
        if row.nested:
            self._forget_nested(registration)
        self._lost.pop(registration, None)
        return Lost(registration, row.dropped, self._missed() - row.missed_before)

    def drain(self, limit: int = sys.maxsize) -> list[Event]:
        """Take at most ``limit`` events out of the ring, oldest first: without one, all there are.

        Never waits for new ones. The ring bounds the answer: some 90,000 events by default.
        """
        return [parse(record) for record in self._ring.read(limit)]

    def lost(self) -> dict[int, int]:
        """Return the registrations that lost something since they were watched, and how much.

        An upper bound where the kernel skipped a program: that counts for every container.
        """
        missed = self._missed()
        now = (self._dropped(), missed)
        if now != self._lost_at:
            found = {
                registration: row.dropped + missed - row.missed_before
                for registration, row in self._rows()
            }
            self._lost = {registration: lost for registration, lost in found.items() if lost}
            self._lost_at = now
        return dict(self._lost)

    def status(self) -> SensorStatus:
        """Return what is attached, watched and lost."""
        return SensorStatus(
            kernel=platform.release(),
            programs=tuple(self._programs),
            watched=len(self._containers),
            nested=sum(row.nested for _, row in self._rows()),
            ring_bytes=self._ring_bytes,
            dropped=self._dropped(),
            missed=self._missed(),
        )

    def close(self) -> None:
        """Detach the sensor and free what it holds; events that were not drained are gone."""
        if not self._obj:
            return
        self._ring.close()
        self._totals.close()
        for link in self._links:
            self._libbpf.link_destroy(link)
        self._libbpf.object_close(self._obj)
        self._obj = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _attach(self) -> None:
        for _, program in self._libbpf.programs(self._obj):
            self._links.append(self._libbpf.program_attach(program))

    def _dropped(self) -> int:
        return int.from_bytes(self._totals[:8], sys.byteorder)

    def _missed(self) -> int:
        return sum(
            self._libbpf.recursion_misses(fd)
            for name, fd in self._programs.items()
            if name != _HARMLESS_WHEN_MISSED
        )

    def _rows(self) -> Iterator[tuple[int, "_Row"]]:
        for key in self._libbpf.keys(
            self._registrations, _REGISTRATION_KEY.size, _REGISTRATIONS_MAX
        ):
            raw = self._libbpf.lookup(self._registrations, key, _REGISTRATION.size)
            if raw is not None:
                yield _REGISTRATION_KEY.unpack(key)[0], _Row(*_REGISTRATION.unpack(raw))

    def _forget_nested(self, registration: int) -> None:
        for key in self._libbpf.keys(self._watched, _MNTNS.size, 2 * _WATCHED_MAX):
            raw = self._libbpf.lookup(self._watched, key, _WATCHED.size)
            if raw is not None and _WATCHED.unpack(raw)[0] == registration:
                self._libbpf.delete(self._watched, key)


class _Row(NamedTuple):
    """``struct registration`` of sensor.h."""

    cgroup_id: int
    dropped: int
    nested: int
    missed_before: int
    mntns: int


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
