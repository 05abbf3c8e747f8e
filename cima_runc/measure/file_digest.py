"""The digest of a file that is in use, told from other files by what the filesystem says of it."""

import hashlib
import os
import stat
from typing import NamedTuple

from cima_runc.base import limits
from cima_runc.base.errors import CimaError


class FileDigestError(CimaError):
    """The file cannot be hashed."""


class Identity(NamedTuple):
    """As long as this is the same, the file's content is taken to be the same."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int


def identity_of(file: str | bytes | int) -> Identity:
    """Return the identity of a file, symbolic links followed.

    Raises:
        OSError: it is not there, or must not be looked at.
    """
    return _identity(os.stat(file))


def open_regular(path: str | bytes) -> int:
    """Open a file for :func:`sha256`, never waiting for it.

    Raises:
        OSError: it cannot be opened.
        FileDigestError: it is not a regular file.
    """
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise FileDigestError("not a regular file")
    return handle


def sha256(handle: int) -> tuple[bytes, Identity]:
    """Return the SHA-256 (32 bytes) of an open regular file, and the identity that it is of.

    Raises:
        OSError: it cannot be read.
        FileDigestError: it is too large, or changed while it was read.
    """
    before = identity_of(handle)
    if before.size > limits.HOST_SERVICE_FILE:
        raise FileDigestError(f"more than {limits.HOST_SERVICE_FILE} bytes")
    digest = hashlib.sha256()
    left = before.size + 1
    os.lseek(handle, 0, os.SEEK_SET)
    while left > 0 and (chunk := os.read(handle, min(limits.READ_SOON, left))):
        digest.update(chunk)
        left -= len(chunk)
    if left != 1 or identity_of(handle) != before:
        raise FileDigestError("it changed while it was read")
    return digest.digest(), before


def _identity(found: os.stat_result) -> Identity:
    return Identity(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
