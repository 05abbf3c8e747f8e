r"""What the kernel shows of processes and sockets in /proc, parsed. No I/O.

Source: proc(5); fs/proc/task_mmu.c (show_map_vma), fs/d_path.c (d_path) and net/unix/af_unix.c
(unix_seq_show) of Linux 6.1.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from cima_runc.base.errors import CimaError

DELETED = b" (deleted)"
"""What the kernel puts after the path of a file that has no name any more."""

_MAPPING = re.compile(
    rb"([0-9a-f]{1,16})-([0-9a-f]{1,16}) [r-][w-]([x-])[sp] [0-9a-f]+ "
    rb"([0-9a-f]+:[0-9a-f]+) ([0-9]{1,20})(?: +([^ ].*)?)?",
    re.DOTALL,
)
_ACCEPTS = 0x10000
"""__SO_ACCEPTCON: the socket listens (include/uapi/linux/net.h)."""
_UNIX_FIELDS = 7


class ProcfsError(CimaError):
    """A file of /proc does not read as the kernel writes it."""


@dataclass(frozen=True)
class ExecutableMapping:
    """A file that a process has mapped executable."""

    start: int
    """First address of the mapping."""
    end: int
    """The address after it."""
    inode: int
    path: bytes
    """As shown, without ``(deleted)``."""

    @property
    def name(self) -> str:
        """Its name in /proc/PID/map_files."""
        return f"{self.start:x}-{self.end:x}"


def parse_maps(text: bytes) -> list[ExecutableMapping]:
    r"""Return the executable mappings of files in /proc/PID/maps, each file once.

    A newline in a path is shown as ``\012``, and nothing else is escaped.

    Raises:
        ProcfsError: a line is not one of a mapping.
    """
    found: dict[tuple[bytes, bytes, bytes], ExecutableMapping] = {}
    for line in text.removesuffix(b"\n").split(b"\n") if text else []:
        match = _MAPPING.fullmatch(line)
        if match is None:
            raise ProcfsError("a line of a process's maps cannot be read")
        start, end, executable, device, inode, shown = match.groups()
        if executable != b"x" or inode == b"0" or not shown:
            continue
        path = without_deleted(shown.replace(rb"\012", b"\n"))
        mapping = ExecutableMapping(int(start, 16), int(end, 16), int(inode), path)
        found.setdefault((device, inode, path), mapping)
    return list(found.values())


def without_deleted(path: bytes) -> bytes:
    """Return a path as it was before its file was removed or replaced."""
    return path.removesuffix(DELETED)


def parse_unix_listening(text: bytes) -> list[tuple[int, bytes]]:
    """Return (inode number, path) of the sockets in /proc/net/unix that listen."""
    found = []
    for line in text.split(b"\n"):
        # Num RefCount Protocol Flags Type St Inode Path
        fields = line.split(maxsplit=_UNIX_FIELDS)
        if len(fields) <= _UNIX_FIELDS:
            continue
        try:
            if int(fields[3], 16) & _ACCEPTS:
                found.append((int(fields[6]), fields[_UNIX_FIELDS]))
        except ValueError:
            continue
    return found


def parse_unix_listeners(text: bytes, path: bytes) -> set[int]:
    """Return the inode numbers of the sockets in /proc/net/unix that listen on ``path``."""
    return {inode for inode, each in parse_unix_listening(text) if each == path}


def flag_value(argv: Sequence[str], name: str) -> str | None:
    """Return the value of a flag as Go and GNU programs take it: ``-name V``, ``--name=V``.

    Given several times, the last one counts.
    """
    return next(reversed(flag_values(argv, name)), None)


def flag_values(argv: Sequence[str], name: str) -> list[str]:
    """Return the values of a flag that may be given several times, in their order.

    A value is never looked at as a flag: conmon is told another program's flags as values.
    """
    found = []
    words = iter(argv)
    for word in words:
        bare, equals, value = word.partition("=")
        if bare not in {f"-{name}", f"--{name}"}:
            continue
        following = value if equals else next(words, None)
        if following is not None:
            found.append(following)
    return found
