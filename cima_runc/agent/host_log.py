"""The host's part of the kernel's log, as evidence needs it: what extended the host's PCR.

Reading costs what is new. Kept are 32 bytes a line; what a line says is read again where all of
the log is asked for.
"""

import threading
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cima_runc.cpcr import register
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
        self._value = register.ZERO
        self._recent: deque[HostPrefix] = deque([HostPrefix(register.ZERO, 0)], maxlen=_RECENT)
        self._lock = threading.Lock()

    def recent(self) -> list[HostPrefix]:
        """Return the PCR's latest values by the log as it is now, the last one first.

        Raises:
            KernelLogError: the log is not what it was.
        """
        with self._lock:
            for entry in self._log.read_new():
                if entry.pcr == self._pcr:
                    digest = entry.extends(BANK)
                    self._digests += digest
                    self._value = register.extend(self._value, digest)
                    self._recent.append(HostPrefix(self._value, len(self._digests) // 32))
            return list(reversed(self._recent))

    def redacted(self, lines: int) -> list[str]:
        """Return what the first ``lines`` entries extended the PCR with, in hexadecimal."""
        with self._lock:
            text = bytes(self._digests[: 32 * lines]).hex()
        return [text[at : at + 64] for at in range(0, len(text), 64)]

    def full(self, lines: int) -> list[dict[str, Any]]:
        """Return the first ``lines`` entries as they are."""
        log = KernelLog.open(self._directory, self._copy)
        try:
            entries = [entry for entry in log.read_new() if entry.pcr == self._pcr]
        finally:
            log.close()
        return [
            {
                "template": entry.template.decode("ascii", "replace"),
                "data": entry.data.hex(),
                "violation": entry.violation,
            }
            for entry in entries[:lines]
        ]
