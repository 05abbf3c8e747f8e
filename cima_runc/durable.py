"""Files that only grow by whole lines, or are replaced as a whole, and survive a crash."""

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_TAIL = 1 << 16
_SYNCERS = ThreadPoolExecutor(max_workers=4, thread_name_prefix="sync")


def open_append(path: Path) -> int:
    """Open ``path`` for appending, made with mode 0600 if need be; remove a cut-off last line.

    Only what was never acknowledged can be cut off: a line is acknowledged when it is on disk.
    """
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    handle = os.open(path, flags, 0o600)
    size = os.fstat(handle).st_size
    end = _end_of_last_line(handle, size)
    if end < size:
        os.ftruncate(handle, end)
        os.fsync(handle)
    return handle


def _end_of_last_line(handle: int, size: int) -> int:
    while size > 0:
        start = max(0, size - _TAIL)
        newline = os.pread(handle, size - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        size = start
    return 0


def write_all(handle: int, data: bytes) -> None:
    """Append ``data`` as a whole, or, where that fails, nothing of it.

    Raises:
        OSError: the disk is full or broken; the file is as it was.
    """
    size = os.fstat(handle).st_size
    written = 0
    try:
        while written < len(data):
            written += os.write(handle, data[written:])
    except OSError:
        if written:
            os.ftruncate(handle, size)
        raise


def replace_file(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Put ``data`` at ``path`` (mode 0600): the old or the new, whole, also after a crash of ours.

    Where ``durable``, after a crash of the machine too, and the new from this return on.
    """
    temporary = path.with_name(path.name + ".new")
    temporary.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    handle = os.open(temporary, flags, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
        file.flush()
        if durable:
            os.fsync(handle)
    temporary.replace(path)
    if durable:
        sync_directory(path.parent)


def sync_all(paths: Iterable[Path]) -> None:
    """Make files and directories durable, at once: the disk's journal then writes them together.

    Raises:
        OSError: one of them could not be written.
    """
    list(_SYNCERS.map(sync_directory, paths))


def sync_directory(path: Path) -> None:
    """Make the names in the directory ``path`` durable, or what is in the file."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
