"""A process's command line and environment, as the process itself shows them.

By prctl(2), PR_SET_MM_MAP, anybody names any part of his memory as these, of any size. So they are
asked for last, when what cannot be chosen, such as whose the process is, says that they count; and
read no further than real ones go.
"""

import os

from cima_runc.base import limits
from cima_runc.base.bounded import read_bounded


def command_line(pid: int) -> list[str]:
    """Return the program's name and its arguments; bytes that are not UTF-8 are surrogates.

    Raises:
        OSError: there is no such process.
    """
    return _texts(pid, "cmdline")


def environment(pid: int) -> dict[str, str]:
    """Return the environment that the program began with.

    Raises:
        OSError: there is no such process, or it may not be looked at.
    """
    pairs = (text.partition("=") for text in _texts(pid, "environ"))
    return {name: value for name, equals, value in pairs if equals}


def _texts(pid: int, name: str) -> list[str]:
    raw = read_bounded(f"/proc/{pid}/{name}", limits.COMMAND_LINE).removesuffix(b"\0")
    return [os.fsdecode(word) for word in raw.split(b"\0")]
