r"""Path patterns of a policy.

``*`` stands for any bytes but ``/``, ``**`` for any bytes, ``\i`` for an id that an engine names
things by at random: 64 hexadecimal digits, or a UUID. ``\xNN`` is the byte NN, and ``\*`` and
``\\`` are the character itself, so that every path can be written, as findings print it. Everything
else stands for itself, in UTF-8. A pattern is of a whole path and begins with ``/`` or ``**``; one
of a name that is no absolute path (IMA's ``kexec-cmdline``, ``(unreachable)/bin/sh``) begins with
``\xNN``, since without a slash most are mistakes.
"""

import re
from functools import lru_cache

from cima_runc.base.errors import CimaError
from cima_runc.base.text import printable

_WILDCARDS = 8
"""In one pattern at most: each may double the time that matching takes."""
_PIECE = re.compile(r"\*\*|\*|\\x[0-9a-f]{2}|\\[*\\i]|[^\\*]+|\\", re.DOTALL)
ID = r"\i"
"""An id that is named at random."""
ID_FORM = r"[0-9a-f]{64}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
"""What it looks like, as a regular expression."""


class PatternError(CimaError):
    """The pattern is not one."""


@lru_cache(maxsize=4096)
def compile_pattern(pattern: str) -> re.Pattern[bytes]:
    """Return the pattern as a regular expression of a whole path.

    Raises:
        PatternError: it begins with something else, has another backslash, or too many wildcards.
    """
    if not pattern.startswith(("/", "**", "\\x")):
        raise PatternError(f"the pattern {printable(pattern)} does not begin with / or **")
    parts: list[bytes] = []
    wildcards = 0
    for piece in _PIECE.findall(pattern):
        if piece in {"*", "**"}:
            wildcards += 1
            parts.append(b".*" if piece == "**" else b"[^/]*")
        elif piece == "\\":
            raise PatternError(
                f"the pattern {printable(pattern)} has a lone backslash",
                hint=r"write \\ for a backslash, \* for a star, \xNN for a byte, \i for an id",
            )
        elif piece == ID:
            parts.append(f"(?:{ID_FORM})".encode())
        elif piece.startswith("\\x"):
            parts.append(re.escape(bytes([int(piece[2:], 16)])))
        elif piece.startswith("\\"):
            parts.append(re.escape(piece[1:].encode()))
        else:
            parts.append(re.escape(piece.encode("utf-8", "surrogatepass")))
    if wildcards > _WILDCARDS:
        raise PatternError(f"the pattern {printable(pattern)} has more than {_WILDCARDS} wildcards")
    return re.compile(b"".join(parts), re.DOTALL)


def matches(pattern: str, path: bytes) -> bool:
    """Return whether ``path`` is what the pattern stands for. Raises :class:`PatternError`."""
    return compile_pattern(pattern).fullmatch(path) is not None


def exactly(path: bytes) -> str:
    """Return the pattern that matches ``path`` and nothing else, one line of printable text."""
    if path.startswith(b"/"):
        return literal(path)
    return f"\\x{path[:1].hex()}{literal(path[1:])}" if path else ""


def literal(part: bytes) -> str:
    """Return what stands for a part of a path in a pattern."""
    return printable(part).replace("*", "\\*")
