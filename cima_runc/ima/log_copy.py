"""What was read of a log whose lines others may remove, kept for the boot.

From Linux 7.2 on root may trim the kernel's log: lines that evidence needs are gone then. So each
is kept in a file as soon as it is read, in the form of ``binary_runtime_measurements``. The file
need not survive a loss of power: with it the log begins anew.
"""

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from cima_runc.base import limits
from cima_runc.base.errors import CimaError
from cima_runc.ima.entry import Entry, EntryError, format_binary, parse_binary


class LogCopyError(CimaError):
    """The copy cannot be kept."""


class LogCopy:
    """The copy of one boot's log."""

    def __init__(self, directory: Path, boot_id: str, *, keep: bool) -> None:
        """``directory`` is root's own; those who do not ``keep`` the copy only read it."""
        self._path = directory / boot_id
        self._keep = keep
        self._fd: int | None = None

    def read(self) -> list[Entry]:
        """Return what an earlier process has read of this boot's log, and forget other boots'.

        Raises:
            OSError: the copy cannot be read.
        """
        if self._keep:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            for other in self._path.parent.iterdir():
                if other != self._path:
                    other.unlink()
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return []
        entries: list[Entry] = []
        offset = 0
        # What was cut off by a crash, or damaged, ends it.
        with suppress(EntryError):
            while (found := parse_binary(data, offset)) is not None:
                entry, offset = found
                entries.append(entry)
        if self._keep and offset < len(data):
            os.truncate(self._path, offset)
        return entries

    def append(self, entries: Iterable[Entry]) -> None:
        """Keep entries.

        Raises:
            LogCopyError: they cannot be written; they are not in the copy then.
        """
        if not self._keep:
            return
        data = b"".join(format_binary(entry) for entry in entries)
        if not data:
            return
        try:
            if self._fd is None:
                flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
                self._fd = os.open(self._path, flags, 0o600)
            before = os.fstat(self._fd).st_size
            written = 0
            while written < len(data):
                try:
                    written += os.write(self._fd, data[written : written + limits.MIB])
                except OSError:
                    os.ftruncate(self._fd, before)
                    raise
        except OSError as error:
            raise LogCopyError(
                f"the kernel's log cannot be kept: {error.strerror}",
                hint=f"make room in {self._path.parent}",
            ) from error

    def close(self) -> None:
        """Close the file."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
