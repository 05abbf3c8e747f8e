"""The kernel's measurement log, read as it grows, every entry checked, and replayed.

The ascii log is read. Where a line does not say what was hashed (a newline in a name cuts it),
that one record is taken from the binary log, which has the same entries in the same order.
"""

import hashlib
import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cima_runc.base import limits
from cima_runc.base.errors import CimaError
from cima_runc.ima.entry import Entry, parse_ascii, parse_binary

BANK = "sha256"
"""The bank in which the log is replayed."""

_RECENT = 4096


class KernelLogError(CimaError):
    """The kernel's log is not what it was, or not what the kernel writes."""


@dataclass(frozen=True)
class Replay:
    """What the log adds up to for one PCR."""

    value: bytes
    """The replayed value, 32 bytes."""
    lines: int
    """Entries of the log that extended this PCR."""


class KernelLog:
    """An open log. Reading costs what is new, not what is there."""

    def __init__(self, ascii_file: Path, binary_file: Path) -> None:
        """Open the log.

        Raises:
            OSError: it is not there or must not be read.
        """
        self._ascii = os.open(ascii_file, os.O_RDONLY | os.O_CLOEXEC)
        self._binary_file = binary_file
        self._binary: _BinaryCursor | None = None
        self._rest = b""
        self._count = 0
        self._where: dict[bytes, int] = {}
        self._replays: dict[int, Replay] = {}
        self._recent: dict[int, deque[bytes]] = {}

    @classmethod
    def open(cls, directory: Path) -> Self:
        """Open the log in IMA's ``directory`` of securityfs."""
        return cls(
            directory / "ascii_runtime_measurements", directory / "binary_runtime_measurements"
        )

    def close(self) -> None:
        """Close the log."""
        os.close(self._ascii)
        if self._binary is not None:
            self._binary.close()

    @property
    def count(self) -> int:
        """Entries read so far."""
        return self._count

    def replay(self, pcr: int) -> Replay:
        """Return what the entries read so far add up to."""
        return self._replays.get(pcr, Replay(bytes(32), 0))

    def explains(self, pcr: int, value: bytes) -> bool:
        """Whether the log as read adds up to ``value``, at its end or a little before.

        The kernel appends before it extends, so a log that was read after the PCR may lead it.
        """
        return value == self.replay(pcr).value or value in self._recent.get(pcr, ())

    def line_of(self, digest: bytes, path: bytes, pcr: int | None = None) -> int | None:
        """Return the index (from 0) of the first entry with this file digest and path, or None.

        A path's spaces are looked up as the underscores that IMA makes of them. With ``pcr``, only
        an entry that extended this PCR counts.
        """
        name = path.replace(b" ", b"_")
        pcrs = self._replays if pcr is None else (pcr,)
        lines = (self._where.get(_key(one, digest, name)) for one in pcrs)
        return min((line for line in lines if line is not None), default=None)

    def read_new(self) -> list[Entry]:
        """Read what the kernel has appended since the last call, and return it.

        Raises:
            KernelLogError: the log does not start with ``boot_aggregate``, or an entry is not
                what its template hash says.
        """
        new = []
        for entry in self._entries():
            if self._count == 0 and (entry.file or (b"", b""))[1] != b"boot_aggregate":
                raise KernelLogError(
                    "the kernel's log does not start with boot_aggregate",
                    hint="its beginning was removed or came over from another kernel: reboot",
                )
            self._add(entry)
            new.append(entry)
        return new

    def _add(self, entry: Entry) -> None:
        file = entry.file
        if file is not None and not entry.violation:
            self._where.setdefault(_key(entry.pcr, *file), self._count)
        before = self.replay(entry.pcr)
        recent = self._recent.setdefault(entry.pcr, deque(maxlen=_RECENT))
        recent.append(before.value)
        value = hashlib.sha256(before.value + entry.extends(BANK)).digest()
        self._replays[entry.pcr] = Replay(value, before.lines + 1)
        self._count += 1

    def _entries(self) -> Iterator[Entry]:
        skip = 0
        for line in self._lines():
            if skip:
                skip -= 1
                continue
            entry = parse_ascii(line)
            if entry is None:
                entry = self._from_binary(self._count)
                name = (entry.file or (b"", b""))[1]
                skip = name.count(b"\n")
            yield entry
        if skip:
            raise KernelLogError("the kernel's ascii log ends within an entry")

    def _lines(self) -> Iterator[bytes]:
        while chunk := os.read(self._ascii, limits.READ_SOON):
            *lines, self._rest = (self._rest + chunk).split(b"\n")
            if len(self._rest) > limits.IMA_LINE:
                raise KernelLogError(f"a line of the log has more than {limits.IMA_LINE} bytes")
            yield from lines

    def _from_binary(self, index: int) -> Entry:
        if self._binary is None:
            self._binary = _BinaryCursor(self._binary_file)
        return self._binary.entry(index)


class _BinaryCursor:
    """Walks forward through the binary log."""

    def __init__(self, path: Path) -> None:
        self._handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._buffer = b""
        self._next = 0

    def close(self) -> None:
        os.close(self._handle)

    def entry(self, index: int) -> Entry:
        offset = 0
        while True:
            parsed = parse_binary(self._buffer, offset)
            if parsed is None:
                chunk = os.read(self._handle, limits.READ_SOON)
                if not chunk:
                    raise KernelLogError(f"the binary log has no entry {index}")
                self._buffer = self._buffer[offset:] + chunk
                offset = 0
                continue
            entry, offset = parsed
            self._next += 1
            if self._next > index:
                self._buffer = self._buffer[offset:]
                return entry


def _key(pcr: int, digest: bytes, path: bytes) -> bytes:
    # Half a SHA-256 is enough to find a line, and keeps a log of millions small in memory.
    return hashlib.sha256(pcr.to_bytes(4, "big") + digest + path).digest()[:16]
