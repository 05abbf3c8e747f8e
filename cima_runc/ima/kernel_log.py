"""The kernel's measurement log, read as it grows, every entry checked, and replayed.

The ascii log is read. Where a line does not say what was hashed (a newline in a name cuts it),
that one record is taken from the binary log, which has the same entries in the same order.
"""

import errno
import hashlib
import os
import re
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cima_runc.base import limits
from cima_runc.base.errors import CimaError
from cima_runc.base.text import printable
from cima_runc.ima.entry import Entry, parse_ascii, parse_binary
from cima_runc.ima.log_copy import LogCopy
from cima_runc.ima.template import fields_of

BANK = "sha256"
"""The bank in which the log is replayed."""

_OWN_TEMPLATE = "start the kernel with ima_template=ima-sig and without ima_template_fmt"
_RECENT = 4096
_BUSY_SECONDS = 0.2
_BUSY_PAUSE_SECONDS = 0.01
_KEY_SIZE = 16


class KernelLogError(CimaError):
    """The kernel's log is not what it was, or not what the kernel writes."""


class TrimmedUnseenError(KernelLogError):
    """Lines of the log were removed that nobody here has read."""


class LogBusyError(KernelLogError):
    """Somebody is removing lines, for which the kernel keeps everybody else out."""

    def __init__(self) -> None:
        super().__init__("lines of the kernel's log are being removed", hint="look again")


@dataclass(frozen=True)
class Replay:
    """What the log adds up to for one PCR."""

    value: bytes
    """The replayed value, 32 bytes."""
    lines: int
    """Entries of the log that extended this PCR."""


class KernelLog:
    """The log, read as it grows. Reading costs what is new, not what is there.

    Where the kernel lets root remove lines (from Linux 7.2 on), the log is not held open, since
    that would keep everybody else from removing any, and a ``copy`` keeps the lines. What is
    visible is then laid onto what was read before.
    """

    def __init__(self, ascii_file: Path, binary_file: Path, copy: LogCopy | None = None) -> None:
        """Open the log.

        Raises:
            OSError: it is not there or must not be read.
        """
        self._ascii_file = ascii_file
        self._binary_file = binary_file
        handle = _open(ascii_file)
        self._trimmable = _may_be_trimmed(os.fstat(handle).st_mode, os.uname().release)
        self._ascii: int | None = handle
        if self._trimmable:
            os.close(handle)
            self._ascii = None
        self._copy = copy if self._trimmable else None
        self._binary: _BinaryCursor | None = None
        self._rest = b""
        self._count = 0
        self._counted = b""
        self._trimmed = 0
        """Lines that the kernel shows no more."""
        self._offset = 0
        self._last = b""
        """Where the visible log was read to, and the last line before that."""
        self._keys = bytearray()
        """Of a log that can be trimmed: 16 bytes for each entry, by which it is found again."""
        self._where: dict[bytes, int] = {}
        self._replays: dict[int, Replay] = {}
        self._recent: dict[int, deque[bytes]] = {}

    @classmethod
    def open(cls, directory: Path, copy: LogCopy | None = None) -> Self:
        """Open the log in IMA's ``directory`` of securityfs."""
        return cls(
            directory / "ascii_runtime_measurements",
            directory / "binary_runtime_measurements",
            copy,
        )

    def close(self) -> None:
        """Close the log."""
        if self._ascii is not None:
            os.close(self._ascii)
            self._ascii = None
        if self._binary is not None:
            self._binary.close()
            self._binary = None
        if self._copy is not None:
            self._copy.close()

    def has_changed(self) -> bool:
        """Whether the kernel counts other entries than at the last call; yes where it does not."""
        try:
            count = (self._ascii_file.parent / "runtime_measurements_count").read_bytes()
        except OSError:
            return True
        changed, self._counted = count != self._counted, count
        return changed

    @property
    def trimmable(self) -> bool:
        """Whether the kernel lets root remove lines."""
        return self._trimmable

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

        The first call returns what a copy has of lines that are gone, too.

        Raises:
            KernelLogError: the log does not start with ``boot_aggregate``, or does not go on where
                it was read to, or an entry is not what its template hash says.
            LogCopyError: what was read cannot be kept; it is not lost, the next call reads it.
            LogBusyError, OSError: the next call reads the same.
        """
        return self._read_trimmable() if self._trimmable else self._read_held()

    def _read_held(self) -> list[Entry]:
        assert self._ascii is not None
        new: list[Entry] = []
        try:
            for entry, _ in self._entries(self._ascii):
                self._check_beginning(entry)
                self._add(entry)
                new.append(entry)
        except OSError:
            # What was read counts, and whoever asked must get it; the next call goes on there.
            if not new:
                raise
        return new

    def _check_beginning(self, entry: Entry) -> None:
        if self._count:
            return
        names = fields_of(entry.template)
        if names and not {b"n-ng", b"n"} & set(names):
            raise KernelLogError(
                f"IMA's template {printable(entry.template)} has no names of files",
                hint=_OWN_TEMPLATE,
            )
        if not names:
            raise KernelLogError(
                f"IMA's template {printable(entry.template)} is not known",
                hint="start the kernel with ima_template=ima-sig",
            )
        if entry.name != b"boot_aggregate":
            raise TrimmedUnseenError(
                "the kernel's log does not begin with boot_aggregate:"
                " lines were removed before the agent first read it",
                hint="reboot, and start the agent before whatever removes lines",
            )

    # A log that can be trimmed.

    def _read_trimmable(self) -> list[Entry]:
        handle = _open(self._ascii_file)
        try:
            known: list[Entry] = []
            if self._goes_on(handle):
                os.lseek(handle, self._offset, os.SEEK_SET)
                new = self._visible(handle)
            else:
                known = self._read_copy()
                new = self._lay_on(handle)
        finally:
            os.close(handle)
            self._forget_binary()
        entries = [entry for entry, _ in new]
        if self._copy is not None:
            self._copy.append(entries)
        for entry, raw in new:
            self._add(entry)
            self._offset += len(raw)
            self._last = raw
        return known + entries

    def _read_copy(self) -> list[Entry]:
        """Take what the copy has beyond what was read here: somebody else may keep it."""
        if self._copy is None:
            return []
        known = self._copy.read()[self._count :]
        for entry in known:
            self._add(entry)
        return known

    def _goes_on(self, handle: int) -> bool:
        """Whether the visible log still has, where it was read to, the line that was read last."""
        if not self._last:
            return False
        os.lseek(handle, self._offset - len(self._last), os.SEEK_SET)
        return _read_exactly(handle, len(self._last)) == self._last

    def _lay_on(self, handle: int) -> list[tuple[Entry, bytes]]:
        """Find where the visible log begins in what was read; return what is new of it."""
        os.lseek(handle, 0, os.SEEK_SET)
        self._rest, self._offset, self._last = b"", 0, b""
        before, self._trimmed = self._trimmed, self._count
        # The lines' own place is not known yet: those of the binary log are counted from 0.
        visible = self._visible(handle)
        if not visible or not self._count:
            return visible
        keys = b"".join(_line_key(entry) for entry, _ in visible)
        for start in self._places(keys[:_KEY_SIZE], before):
            seen = self._count - start
            if self._keys[_KEY_SIZE * start :] == keys[: _KEY_SIZE * seen]:
                self._trimmed = start
                for _, raw in visible[:seen]:
                    self._offset += len(raw)
                    self._last = raw
                return visible[seen:]
        first = visible[0][0]
        if first.name == b"boot_aggregate" or any(True for _ in self._places(keys[:_KEY_SIZE], 0)):
            raise KernelLogError(
                "the kernel's log does not go on as it was read before",
                hint="reboot; something changes the log, or shows another",
            )
        # Everything that was read is gone. That nothing is missing between, the PCR shows.
        return visible

    def _places(self, key: bytes, first: int) -> Iterator[int]:
        """Yield where an entry is in what was read, from the index ``first`` on."""
        at = self._keys.find(key, _KEY_SIZE * first)
        while at >= 0:
            if at % _KEY_SIZE == 0:
                yield at // _KEY_SIZE
            at = self._keys.find(key, at + 1)

    def _visible(self, handle: int) -> list[tuple[Entry, bytes]]:
        self._rest = b""
        found: list[tuple[Entry, bytes]] = []
        for entry, raw in self._entries(handle):
            if not found:
                self._check_beginning(entry)
            found.append((entry, raw))
        return found

    def _forget_binary(self) -> None:
        if self._binary is not None:
            self._binary.close()
            self._binary = None

    def _add(self, entry: Entry) -> None:
        file = entry.file
        if file is not None and not entry.violation:
            self._where.setdefault(_key(entry.pcr, *file), self._count)
        if self._trimmable:
            self._keys += _line_key(entry)
        before = self.replay(entry.pcr)
        recent = self._recent.setdefault(entry.pcr, deque(maxlen=_RECENT))
        recent.append(before.value)
        value = hashlib.sha256(before.value + entry.extends(BANK)).digest()
        self._replays[entry.pcr] = Replay(value, before.lines + 1)
        self._count += 1

    def _entries(self, handle: int) -> Iterator[tuple[Entry, bytes]]:
        """Yield the entries from where ``handle`` is, each with its lines as they are shown."""
        skip = 0
        index = self._count - self._trimmed
        entry: Entry | None = None
        raw = b""
        for line in self._lines(handle):
            if skip:
                skip -= 1
                raw += line + b"\n"
            else:
                raw = line + b"\n"
                entry = parse_ascii(line)
                if entry is None:
                    entry = self._from_binary(index, line)
                    skip = (entry.name or b"").count(b"\n")
                index += 1
            if not skip and entry is not None:
                yield entry, raw
                entry = None
        if skip:
            raise KernelLogError("the kernel's ascii log ends within an entry")

    def _lines(self, handle: int) -> Iterator[bytes]:
        while chunk := os.read(handle, limits.READ_SOON):
            *lines, self._rest = (self._rest + chunk).split(b"\n")
            if len(self._rest) > limits.IMA_LINE:
                raise KernelLogError(f"a line of the log has more than {limits.IMA_LINE} bytes")
            yield from lines

    def _from_binary(self, index: int, line: bytes) -> Entry:
        if self._binary is None:
            self._binary = _BinaryCursor(self._binary_file)
        entry = self._binary.entry(index)
        shown = line.lstrip(b" ").split(b" ")
        if len(shown) > 1 and shown[1] != entry.template_hash.hex().encode("ascii"):
            raise KernelLogError(
                f"entry {index} of the kernel's ascii log is another than that of the binary log"
            )
        return entry


def usable(entries: Iterable[Entry]) -> None:
    """See that the log says of files what is needed: their SHA-256 and their names.

    Raises:
        KernelLogError: names the kernel's argument that mends it.
    """
    algorithms: Counter[str] = Counter()
    others: Counter[bytes] = Counter()
    for entry in entries:
        if entry.violation or entry.name == b"boot_aggregate" or entry.template == b"ima-buf":
            continue
        if entry.file is not None:
            return
        digest = entry.digest
        if digest is not None and entry.name is not None:
            algorithms[digest[0]] += 1
        else:
            others[entry.template] += 1
    if algorithms:
        most = algorithms.most_common(1)[0][0]
        raise KernelLogError(
            f"IMA hashes files with {printable(most)}, not with SHA-256",
            hint="start the kernel with ima_hash=sha256",
        )
    if others:
        most = printable(others.most_common(1)[0][0])
        raise KernelLogError(
            f"IMA's template {most} has no SHA-256 of files",
            hint=_OWN_TEMPLATE,
        )


_TRIMMING = (7, 2)
"""The first Linux that lets root remove lines."""


def _may_be_trimmed(mode: int, release: str) -> bool:
    """Whether lines may go: root needs no permission bits to write where the kernel lets him."""
    numbers = tuple(int(part) for part in re.findall(r"\d+", release)[:2])
    return bool(mode & 0o222) or numbers >= _TRIMMING


def _open(path: Path) -> int:
    """Open a log, waiting a little for whoever is removing lines (ima_fs.c, ima_measurements_open).

    Raises:
        LogBusyError: that takes longer.
        OSError: it is not there or must not be read.
    """
    until = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            if time.monotonic() > until:
                raise LogBusyError from error
        time.sleep(_BUSY_PAUSE_SECONDS)


def _read_exactly(handle: int, size: int) -> bytes:
    data = b""
    while len(data) < size and (piece := os.read(handle, size - len(data))):
        data += piece
    return data


class _BinaryCursor:
    """Walks forward through the binary log."""

    def __init__(self, path: Path) -> None:
        self._handle = _open(path)
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


def _line_key(entry: Entry) -> bytes:
    # A violation's hash is zero: what it is of is in the data.
    head = entry.pcr.to_bytes(4, "little") + entry.template_hash
    return hashlib.sha256(head + entry.data).digest()[:_KEY_SIZE]


def _key(pcr: int, digest: bytes, path: bytes) -> bytes:
    # Half a SHA-256 is enough to find a line, and keeps a log of millions small in memory.
    return hashlib.sha256(pcr.to_bytes(4, "big") + digest + path).digest()[:16]
