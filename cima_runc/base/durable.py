"""Files that only grow by whole lines, or are replaced as a whole, and survive a crash."""

import errno
import os
import stat
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from cima_runc.base.replaced import replace

_TAIL = 1 << 16
_SYNCERS = ThreadPoolExecutor(max_workers=4, thread_name_prefix="sync")


class AppendFile:
    """A file that grows by whole lines, made with mode 0600 if need be.

    What could not be written as a whole, or not made durable, is taken back: the caller appends it
    again. After a failed fsync(2) the kernel counts pages as written that are not, so only new ones
    can be relied on.
    """

    def __init__(self, path: Path, *, along: Iterable[Path] = ()) -> None:
        """Open ``path`` and remove a cut-off last line.

        Only what was never acknowledged can be cut off: a line is acknowledged when it is on disk.
        ``along`` are new files and directories, without which its first lines mean nothing: they
        become durable together.

        Raises:
            OSError: it cannot be opened or mended, or is no file of this name alone.
        """
        self._path = path
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        self._handle = os.open(path, flags, 0o600)
        try:
            found = os.fstat(self._handle)
            if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
                raise OSError(errno.EMLINK, "it is no regular file with one name", str(path))
            self._size = end_of_last_line(self._handle, found.st_size)
            if self._size < found.st_size:
                self._trim()
                os.fsync(self._handle)
        except BaseException:
            os.close(self._handle)
            raise
        self._durable = self._size
        self._along = tuple(along)

    def append(self, data: bytes) -> None:
        """Append ``data`` as a whole, or, where that fails, nothing of it.

        Raises:
            OSError: the disk is full or broken; the file counts as it was.
        """
        written = 0
        with self._named_errors():
            self._trim()
            try:
                while written < len(data):
                    written += os.write(self._handle, data[written:])
            except OSError:
                with suppress(OSError):
                    self._trim()
                raise
        self._size += len(data)

    def sync(self) -> None:
        """Make everything appended durable.

        Raises:
            OSError: it is not; all since the last time this worked counts as not appended.
        """
        try:
            with self._named_errors():
                # At once: the disk's journal then writes them together.
                along = [_SYNCERS.submit(sync_directory, path) for path in self._along]
                os.fdatasync(self._handle)
                for synced in along:
                    synced.result()
        except OSError:
            self._size = self._durable
            raise
        self._along = ()
        self._durable = self._size

    def close(self) -> None:
        """Make everything durable and close the file.

        Raises:
            OSError: it is not, and the file is open still.
        """
        with self._named_errors():
            self._trim()
        self.sync()
        os.close(self._handle)

    def _trim(self) -> None:
        """Cut off what does not count: of a call that failed."""
        if os.fstat(self._handle).st_size > self._size:
            os.ftruncate(self._handle, self._size)

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from error


def end_of_last_line(handle: int, size: int) -> int:
    """Return how many of the first ``size`` bytes of an open file are whole lines."""
    while size > 0:
        start = max(0, size - _TAIL)
        newline = os.pread(handle, size - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        size = start
    return 0


def replace_file(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Put ``data`` at ``path`` (mode 0600): the old or the new, whole, also after a crash of ours.

    Where ``durable``, after a crash of the machine too, and the new from this return on.
    """
    temporary = path.with_name(path.name + ".new")
    temporary.unlink(missing_ok=True)
    replace(path, data, temporary=temporary, sync=durable)
    if durable:
        sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make the names in the directory ``path`` durable, or what is in the file."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
