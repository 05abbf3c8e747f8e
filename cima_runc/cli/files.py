"""Files that commands read and write, with their limits and in words for people."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from cima_runc.base import limits
from cima_runc.base.bounded import read_bounded
from cima_runc.base.errors import CimaError

T = TypeVar("T")


class FileError(CimaError):
    """A file cannot be read or written."""


def read(path: Path, *, limit: int = limits.VERIFIER_INPUT) -> bytes:
    """Return a file's bytes, those of standard input for ``-``; one more than ``limit`` at most.

    Raises:
        FileError: it cannot be read.
    """
    if str(path) == "-":
        return sys.stdin.buffer.read(limit + 1)
    try:
        return read_bounded(path, limit)
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror}") from error


def parsed(path: Path, parse: Callable[[bytes], T], *, limit: int = limits.VERIFIER_INPUT) -> T:
    """Return what ``parse`` makes of a file's bytes.

    Raises:
        FileError: it cannot be read, or ``parse`` refuses it; the line names the file.
    """
    with about(path):
        return parse(read(path, limit=limit))


@contextmanager
def about(path: Path) -> Iterator[None]:
    """Name the file in errors that tell only what is wrong with what it holds.

    Raises:
        FileError: in place of them.
    """
    name = "standard input" if str(path) == "-" else str(path)
    try:
        yield
    except CimaError as error:
        if name in error.what:
            raise
        raise FileError(f"{name}: {error.what}", hint=error.hint) from error


def write(path: Path, data: bytes, *, private: bool = False) -> None:
    """Write a file, to standard output for ``-``; a ``private`` one is for its owner to read.

    Raises:
        FileError: it cannot be written.
    """
    if str(path) == "-":
        sys.stdout.buffer.write(data)
        return
    _write(path, data, os.O_TRUNC, 0o600 if private else 0o644)


def make_directory(path: Path) -> None:
    """Make a directory, and those that it is in, unless they are there.

    Raises:
        FileError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"{path} cannot be made: {error.strerror}") from error


def write_secret(path: Path, data: bytes) -> None:
    """Write a new file for its owner to read.

    Raises:
        FileError: it cannot be written, or there is one already.
    """
    _write(path, data, os.O_EXCL, 0o600)


def _write(path: Path, data: bytes, flag: int, mode: int) -> None:
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | flag, mode)
        with open(handle, "wb") as file:
            file.write(data)
    except OSError as error:
        raise FileError(f"{path} cannot be written: {error.strerror}") from error
