"""The maps in which a sensor keeps what it watches and what it lost.

sensor.h says what is in them.
"""

import mmap
import struct
import sys
from collections.abc import Iterator
from enum import IntFlag
from typing import Final, NamedTuple

from cima_runc.sensor.libbpf import BPF_ANY, BPF_NOEXIST, Libbpf
from cima_runc.sensor.pins import Handles

LAYOUT: Final = 8
"""Number of sensor.h's layout: what one agent writes, another one of this number reads."""

SHARED: Final = ("digests", "writes", "forgotten", "marks", "mounted", "roots")
"""The maps that a newer sensor goes on with: what is known of files and tasks."""
MAPS: Final = (
    *("allowed", "events", "ever_watched", "registrations", "totals", "watched"),
    *SHARED,
)
"""The maps that are pinned."""

_NUMBER: Final = struct.Struct("=I")
_KEY: Final = struct.Struct("=Q")
WATCHED: Final = struct.Struct("=QQQ")
ROW: Final = struct.Struct("=QQqqQQQQQQqQQqqq")
WATCHED_MAX: Final = 262144
EVER_WATCHED_MAX: Final = 65536
REGISTRATIONS_MAX: Final = 16384
CLASSES: Final = 64
LAYERS: Final = CLASSES - 1
"""The class of what is used from a lower layer, whoever uses it."""
_TOTALS: Final = struct.Struct(f"=QQQ{CLASSES}Q")
"""``struct totals`` of sensor.h."""

_HARMLESS_WHEN_MISSED: Final = frozenset(
    {
        "cima_free_inum",
        "cima_collect_begins",
        "cima_collect_ends",
        "cima_ima_bprm",
        "cima_ima_mmap",
        "cima_exit_files",
    }
)
"""Programs that may be skipped. An entry that outlives its namespace matches no other one; a digest
whose taking was not seen is not believed; a script whose interpreter's end was not seen stays in
use; a use that waits is sent by the next program that is not skipped, and counted where there is
none (``waiting``, and overdue.py)."""

_THAT_SEND: Final = ("cima_ima_bprm", "cima_ima_mmap")
"""Programs that send a use that waits."""


_ENDED: Final = 1 << 63
"""Added to a registration number: the row of a container that is watched no more, and whose end is
not recorded yet. The programs never look for such a number."""


class Row(NamedTuple):
    """``struct registration`` of sensor.h."""

    cgroup_id: int
    dropped: int
    nested: int
    missed_before: int
    mntns: int
    root_dev: int = 0
    bounding: int = 0
    flags: int = 0
    dropped_in: int = 0
    pid: int = 0
    digests: int = 0
    crowded: int = 0
    crowded_below: int = 0
    mapped: int = 0
    waiting: int = 0
    mounted: int = 0


class Flag(IntFlag):
    """What is known of a container; ``enum registration_flag`` of sensor.h."""

    BOUNDING_KNOWN = 1
    SECCOMP_SEEN = 2
    """Its first process has a seccomp filter."""
    FIRST_SEEN = 4
    """Its first process has run."""
    DENY_MEMORY = 8
    """Memory that is no measured file may not become executable."""
    CROWDED = 16
    CROWDED_BELOW = 32
    """It uses files that more containers use than are kept of each."""


class Watched(NamedTuple):
    """``struct watched`` of sensor.h."""

    registration: int
    namespace_id: int
    nested: int


def class_of(registration: int) -> int:
    """Return the class of a container, as class_of of digests.h does (MurmurHash3's last step)."""
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        registration = (registration ^ registration >> 33) * factor % (1 << 64)
    return (registration ^ registration >> 33) % CLASSES % LAYERS


class Tables:
    """The maps of one sensor, by its open ``handles``. Methods raise OSError as libbpf gives it."""

    def __init__(self, libbpf: Libbpf, handles: Handles) -> None:
        self._libbpf = libbpf
        self._watched = handles.maps["watched"]
        # One that an older version of this layout loaded has none; nothing is put there.
        self._ever_watched = handles.maps.get("ever_watched", -1)
        self._rows = handles.maps["registrations"]
        self._allowed = handles.maps["allowed"]
        self._roots = handles.maps["roots"]
        self._marks = handles.maps["marks"]
        self._mark_bytes = libbpf.map_value_size(self._marks)
        self._programs = handles.programs
        totals = handles.maps["totals"]
        self._totals = mmap.mmap(totals, mmap.PAGESIZE, mmap.MAP_SHARED, mmap.PROT_READ)

    def mark_of(self, pidfd: int) -> int | None:
        """Return the registration that a process is marked with, None for no mark."""
        value = self._libbpf.lookup(self._marks, pidfd.to_bytes(4, sys.byteorder), self._mark_bytes)
        return None if value is None else int.from_bytes(value[:8], sys.byteorder)

    def close(self) -> None:
        """Unmap what is mapped."""
        self._totals.close()

    @property
    def dropped(self) -> int:
        """Events dropped since the sensor was loaded, over all containers."""
        return self._counts()[0]

    @property
    def full(self) -> int:
        """Digests for which there was no room, since the sensor was loaded."""
        return self._counts()[1]

    @property
    def unattributed(self) -> int:
        """Changes to files in use by more containers than are remembered of each file, in all
        classes of containers together."""
        return sum(self._counts()[3:])

    def unattributed_to(self, registration: int, row: Row) -> int:
        """Return how many of those may be a container's."""
        until_now, may_be = self.unattributed_in(registration), 0
        if row.flags & Flag.CROWDED:
            may_be += until_now["crowded"] - row.crowded
        if row.flags & Flag.CROWDED_BELOW:
            may_be += until_now["crowded_below"] - row.crowded_below
        return may_be

    def unattributed_in(self, registration: int) -> dict[str, int]:
        """Return the changes until now to files that a container like this one may be using, by
        the field of its row that says where they began to count."""
        by_class = self._counts()[3:]
        return {"crowded": by_class[class_of(registration)], "crowded_below": by_class[LAYERS]}

    def _counts(self) -> tuple[int, ...]:
        return _TOTALS.unpack_from(self._totals)

    def missed(self) -> int:
        """Return how often the kernel skipped a program since the sensor was loaded, or may have.

        Nobody knows whose event that was. Where somebody opens the switch that detaches all
        programs (``kernel.ftrace_enabled``), it may have skipped any.
        """
        skipped = sum(
            self._libbpf.recursion_misses(handle)
            for name, handle in self._programs.items()
            if name not in _HARMLESS_WHEN_MISSED
        )
        return skipped + self._counts()[2]

    def unsent(self) -> int:
        """Return how often the kernel skipped a program that would have sent a use that waits."""
        handles = (self._programs[name] for name in _THAT_SEND if name in self._programs)
        return sum(map(self._libbpf.recursion_misses, handles))

    def rows(self) -> Iterator[tuple[int, Row]]:
        """Yield the registration number and the row of each container that is watched."""
        for key in self._libbpf.keys(self._rows, _KEY.size, 2 * REGISTRATIONS_MAX):
            number = _KEY.unpack(key)[0]
            row = self.row(number)
            if row is not None and not number & _ENDED:
                yield number, row

    def ended_rows(self) -> Iterator[tuple[int, Row]]:
        """Yield the registration number and the last row of each container that was watched."""
        for key in self._libbpf.keys(self._rows, _KEY.size, 2 * REGISTRATIONS_MAX):
            number = _KEY.unpack(key)[0]
            row = self.row(number)
            if row is not None and number & _ENDED:
                yield number & ~_ENDED, row

    def row(self, registration: int) -> Row | None:
        """Return the row of a container, None where there is none."""
        raw = self._libbpf.lookup(self._rows, _KEY.pack(registration), ROW.size)
        return None if raw is None else Row(*ROW.unpack(raw))

    def put_row(self, registration: int, row: Row, *, new: bool) -> None:
        """Write a container's row, where ``new`` only if there is none (EEXIST)."""
        flags = BPF_NOEXIST if new else BPF_ANY
        self._libbpf.update(self._rows, _KEY.pack(registration), ROW.pack(*row), flags)

    def remove_row(self, registration: int) -> None:
        """Remove the row of a container and its list of what may run, if there is one."""
        self._libbpf.delete(self._rows, _KEY.pack(registration))
        self.remove_allowlist(registration)

    def put_allowlist(self, registration: int, allowlist: int) -> None:
        """Let nothing run in a container but what is in the map of this descriptor."""
        self._libbpf.update(self._allowed, _KEY.pack(registration), _NUMBER.pack(allowlist))

    def open_allowlist(self, registration: int) -> int | None:
        """Return the descriptor, the caller's, of what may run; None where that is anything."""
        raw = self._libbpf.lookup(self._allowed, _KEY.pack(registration), _NUMBER.size)
        return None if raw is None else self._libbpf.open_map(_NUMBER.unpack(raw)[0])

    def remove_allowlist(self, registration: int) -> None:
        """Let anything run in a container again."""
        self._libbpf.delete(self._allowed, _KEY.pack(registration))

    def end_row(self, registration: int) -> Row | None:
        """Make the row of a container one that has ended, and return it as it then is.

        At no moment there is neither.
        """
        row = self.row(registration)
        if row is None:
            return None
        self.put_ended_row(registration, row)
        raw = self._libbpf.take(self._rows, _KEY.pack(registration), ROW.size)
        last = row if raw is None else Row(*ROW.unpack(raw))
        # What waits for a digest now will not be sent any more.
        last = last._replace(dropped=last.dropped + max(last.waiting, 0), waiting=0)
        if last != row:
            self.put_ended_row(registration, last)
        return last

    def put_ended_row(self, registration: int, row: Row) -> None:
        """Write the last row of a container that has ended."""
        self.put_row(registration | _ENDED, row, new=False)

    def remove_ended_row(self, registration: int) -> None:
        """Remove the row of a container that has ended, if there is one."""
        self.remove_row(registration | _ENDED)

    def put_root(self, device: int, registration: int) -> None:
        """Say whose root file system the overlay with this ``dev_t`` is."""
        self._libbpf.update(self._roots, _KEY.pack(device), _KEY.pack(registration))

    def remove_root(self, device: int, registration: int) -> None:
        """Take back what :meth:`put_root` said, unless another has said so since."""
        key = _KEY.pack(device)
        if self._libbpf.lookup(self._roots, key, _KEY.size) == _KEY.pack(registration):
            self._libbpf.delete(self._roots, key)

    def namespaces(self) -> Iterator[tuple[int, Watched]]:
        """Yield the number and the entry of each mount namespace, nested ones too."""
        for key in self._libbpf.keys(self._watched, _NUMBER.size, 2 * WATCHED_MAX):
            number = _NUMBER.unpack(key)[0]
            entry = self.namespace(number)
            if entry is not None:
                yield number, entry

    def namespace(self, mntns: int) -> Watched | None:
        """Return the entry of a mount namespace, None where there is none."""
        raw = self._libbpf.lookup(self._watched, _NUMBER.pack(mntns), WATCHED.size)
        return None if raw is None else Watched(*WATCHED.unpack(raw))

    def put_namespace(self, mntns: int, entry: Watched, *, new: bool) -> None:
        """Write a namespace's entry, where ``new`` only if there is none (EEXIST)."""
        flags = BPF_NOEXIST if new else BPF_ANY
        # First: what is not there the programs do not look up.
        slot = _NUMBER.pack(mntns % EVER_WATCHED_MAX)
        self._libbpf.update(self._ever_watched, slot, b"\1")
        self._libbpf.update(self._watched, _NUMBER.pack(mntns), WATCHED.pack(*entry), flags)

    def remove_namespace(self, mntns: int) -> None:
        """Remove a namespace's entry, if there is one."""
        self._libbpf.delete(self._watched, _NUMBER.pack(mntns))
