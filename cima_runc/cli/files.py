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
from cima_runc.cli import context

T = TypeVar("T")


class FileError(CimaError):
    """A file cannot be read or written."""


def read(path: Path, *, limit: int = limits.VERIFIER_INPUT) -> bytes:
    """Return a file's bytes, those of standard input for ``-``; one more than ``limit`` at most.

    Raises:
        FileError: it cannot be read.
    """
    if str(path) == "-":
        if not context.first_time("standard input"):
            raise FileError("standard input was given for two files", hint="it can be one only")
        return sys.stdin.buffer.read(limit + 1)
    try:
        return read_bounded(path, limit)
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror}", hint=_hint(path)) from error


def _hint(path: Path) -> str:
    """What helps whoever gave an address for a file's name."""
    scheme, colon, _ = str(path).partition(":/")
    known = colon and scheme in ("http", "https")
    return "a file is wanted: fetch it first (cima attest --url, curl)" if known else ""


def parsed(path: Path, parse: Callable[[bytes], T], *, limit: int = limits.VERIFIER_INPUT) -> T:
    """Return what ``parse`` makes of a file's bytes.

    Raises:
        FileError: it cannot be read, or ``parse`` refuses it; the line names the file.
    """
    with about(path):
        return parse(read(path, limit=limit))


@contextmanager
def about(*paths: Path) -> Iterator[None]:
    """Name the file in errors that tell only what is wrong with what it holds, or they hold.

    Raises:
        FileError: in place of them.
    """
    names = ["standard input" if str(path) == "-" else str(path) for path in paths]
    name = " or ".join(names)
    try:
        yield
    except CimaError as error:
        if any(each in error.what for each in names):
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
        hint = "move it away, or give another name" if isinstance(error, FileExistsError) else ""
        raise FileError(f"{path} cannot be written: {error.strerror}", hint=hint) from error
