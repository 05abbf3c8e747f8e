"""The host's part of the kernel's log, as evidence needs it: what extended the host's PCR.

Reading costs what is new. Kept are 36 bytes a line; what a line says is read again where all of
the log is asked for, and once for each line that a record of the host's services speaks of.
"""

import threading
from array import array
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cima_runc.cpcr import register
from cima_runc.ima.entry import Entry
from cima_runc.ima.kernel_log import BANK, KernelLog
from cima_runc.ima.log_copy import LogCopy

_RECENT = 4096


@dataclass(frozen=True)
class HostPrefix:
    """The log up to where it adds up to a value of the PCR."""

    value: bytes
    lines: int


class HostLog:
    """The entries of one PCR. May be used by several threads."""

    def __init__(self, directory: Path, pcr: int, copy: LogCopy | None = None) -> None:
        """Open IMA's log in its ``directory`` of securityfs; ``copy`` has lines that are gone.

        Raises:
            OSError: it is not there or must not be read.
        """
        self._directory = directory
        self._pcr = pcr
        self._copy = copy
        self._log = KernelLog.open(directory, copy)
        self._digests = bytearray()
        self._indices = array("L")
        self._value = register.ZERO
        self._recent: deque[HostPrefix] = deque([HostPrefix(register.ZERO, 0)], maxlen=_RECENT)
        self._known: dict[int, Entry] = {}
        self._lock = threading.Lock()

    def recent(self) -> list[HostPrefix]:
        """Return the PCR's latest values by the log as it is now, the last one first.

        Raises:
            KernelLogError: the log is not what it was.
        """
        with self._lock:
            self._read()
            return list(reversed(self._recent))

    def entries_to(self, index: int) -> int:
        """Return how many entries of the PCR there are up to the log's line ``index`` (from 0).

        Raises:
            KernelLogError: the log is not what it was.
        """
        with self._lock:
            self._read()
            return bisect_right(self._indices, index)

    def redacted(self, lines: int, since: int = 0) -> list[bytes]:
        """Return what the first ``lines`` entries, from number ``since`` on, extended the PCR with,
        32 bytes each."""
        with self._lock:
            raw = bytes(self._digests[32 * since : 32 * lines])
        return [raw[at : at + 32] for at in range(0, len(raw), 32)]

    def entries(self, lines: int) -> list[Entry]:
        """Return the first ``lines`` entries as they are."""
        return [entry for entry in self._again() if entry.pcr == self._pcr][:lines]

    def first(self) -> Entry:
        """Return the PCR's first entry.

        Raises:
            KernelLogError: there is none.
        """
        with self._lock:
            index = self._indices[0]
        return self.at([index])[index]

    def at(self, indices: Iterable[int]) -> dict[int, Entry]:
        """Return the log's lines with these numbers (from 0), as far as there are such."""
        wanted = set(indices)
        with self._lock:
            unknown = wanted - self._known.keys()
        if unknown:
            found = {n: entry for n, entry in enumerate(self._again()) if n in unknown}
            with self._lock:
                self._known |= found
        with self._lock:
            return {index: self._known[index] for index in wanted if index in self._known}

    def _read(self) -> None:
        at = self._log.count
        for entry in self._log.read_new():
            if entry.pcr == self._pcr:
                digest = entry.extends(BANK)
                self._digests += digest
                self._indices.append(at)
                self._value = register.extend(self._value, digest)
                self._recent.append(HostPrefix(self._value, len(self._digests) // 32))
            at += 1

    def _again(self) -> list[Entry]:
        log = KernelLog.open(self._directory, self._copy)
        try:
            return log.read_new()
        finally:
            log.close()
