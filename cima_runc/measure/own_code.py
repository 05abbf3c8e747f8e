"""The files that this very program was made of when it was started: modules, launcher, hooks.

The kernel measures them when they are read, since the user ``cima`` owns them: see
examples/ima-policy.
"""

import importlib.util
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from cima_runc.ima.template import Func
from cima_runc.runtime import installation

_PROGRAMS = ("bin/cima-runc", "libexec/cima/hooks/*", "bin/cima-agent")
"""What is executed of us, below the prefix of the installation."""
_READ = (
    "pyvenv.cfg",
    "libexec/cima/*.py",
    "lib/python*/site-packages/*.pth",
    "lib/python*/site-packages/cima_runc/sensor/*.o",
)
"""What is read of us besides modules: by Python as it starts, by the launcher, by the sensor."""

_HEADER = 16
_CHECKED_BY_HASH = 0b1


def own_files(started_ns: int) -> list[tuple[bytes, Func]]:
    """Return the files of this installation that run or are read, and how.

    ``started_ns``: when this process started, ns since 1970.
    """
    prefix = installation.prefix()
    found: dict[bytes, Func] = {}
    for patterns, func in ((_PROGRAMS, Func.BPRM_CHECK), (_READ, Func.FILE_CHECK)):
        for pattern in patterns:
            for path in sorted(prefix.glob(pattern)):
                if path.is_file():
                    found.setdefault(os.fsencode(path.resolve()), func)
    for file in module_files(list(sys.modules.values()), prefix, started_ns):
        found.setdefault(os.fsencode(file), Func.FILE_CHECK)
    return list(found.items())


def module_files(modules: Iterable[ModuleType], prefix: Path, started_ns: int) -> list[Path]:
    """Return the file that each module below ``prefix`` was read from, sorted.

    That is its byte code, where that was valid when it was read, else its source. Extension
    modules are left out: they are mapped, as libraries are.
    """
    found = set()
    for module in modules:
        spec = getattr(module, "__spec__", None)
        origin = getattr(spec, "origin", None)
        if not isinstance(origin, str) or not origin.endswith((".py", ".pyc")):
            continue
        source = Path(origin).resolve()
        if not source.is_relative_to(prefix):
            continue
        cached = getattr(spec, "cached", None)
        byte_code = Path(cached).resolve() if isinstance(cached, str) else None
        if byte_code is not None and _was_used(byte_code, source, started_ns):
            found.add(byte_code)
        else:
            found.add(source)
    return sorted(found)


def _was_used(byte_code: Path, source: Path, started_ns: int) -> bool:
    """Whether Python took this byte code (PEP 552): it is of this source, and older than we."""
    try:
        with byte_code.open("rb") as file:
            header = file.read(_HEADER)
            # Byte code younger than this process was written by it, from the source that it read.
            if os.fstat(file.fileno()).st_mtime_ns > started_ns:
                return False
        of_source = source.stat()
    except OSError:
        return False
    if len(header) != _HEADER or header[:4] != importlib.util.MAGIC_NUMBER:
        return False
    if int.from_bytes(header[4:8], "little") & _CHECKED_BY_HASH:
        return True
    mtime, size = (int.from_bytes(header[at : at + 4], "little") for at in (8, 12))
    return (mtime, size) == (
        int(of_source.st_mtime) & 0xFFFFFFFF,
        of_source.st_size & 0xFFFFFFFF,
    )
