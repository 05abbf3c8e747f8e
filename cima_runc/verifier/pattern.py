r"""Path patterns of a policy.

``*`` stands for any bytes but ``/``, ``**`` for any bytes, ``\i`` for an id that an engine names
things by at random: 64 hexadecimal digits, or a UUID. ``\xNN`` is the byte NN, and ``\*`` and
``\\`` are the character itself, so that every path can be written, as findings print it. Everything
else stands for itself, in UTF-8. A pattern is of a whole path and begins with ``/`` or ``**``; one
of a name that is no absolute path (IMA's ``kexec-cmdline``, ``(unreachable)/bin/sh``) begins with
``\xNN``, since without a slash most are mistakes.
"""

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache

from cima_runc.base.errors import CimaError
from cima_runc.base.text import printable

_WILDCARDS = 8
"""In one pattern at most."""
_PIECE = re.compile(r"\*\*|\*|\\x[0-9a-f]{2}|\\[*\\i]|[^\\*]+|\\", re.DOTALL)
ID = r"\i"
"""An id that is named at random."""
_HEX_ID, _UUID = r"[0-9a-f]{64}", r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
ID_FORM = f"{_HEX_ID}|{_UUID}"
"""What it looks like, as a regular expression."""
_ID_STARTS = tuple(
    (re.compile(f"(?={form})".encode()), n) for form, n in ((_HEX_ID, 64), (_UUID, 36))
)


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
    expressions = {"**": b".*", "*": b"[^/]*", ID: f"(?:{ID_FORM})".encode()}
    parts = [
        expressions[one] if isinstance(one, str) else re.escape(one) for one in _parts(pattern)
    ]
    return re.compile(b"".join(parts), re.DOTALL)


@lru_cache(maxsize=4096)
def _parts(pattern: str) -> tuple[str | bytes, ...]:
    """Return a pattern's wildcards and ids, and the bytes between that stand for themselves."""
    parts: list[str | bytes] = []
    for piece in _PIECE.findall(pattern):
        if piece in {"*", "**", ID}:
            parts.append(piece)
            continue
        if piece == "\\":
            raise PatternError(
                f"the pattern {printable(pattern)} has a lone backslash",
                hint=r"write \\ for a backslash, \* for a star, \xNN for a byte, \i for an id",
            )
        if piece.startswith("\\x"):
            raw = bytes([int(piece[2:], 16)])
        else:
            raw = piece.removeprefix("\\").encode("utf-8", "surrogatepass")
        last = parts.pop() if parts and isinstance(parts[-1], bytes) else b""
        assert isinstance(last, bytes)
        parts.append(last + raw)
    if _wildcards(parts) > _WILDCARDS:
        raise PatternError(f"the pattern {printable(pattern)} has more than {_WILDCARDS} wildcards")
    return tuple(parts)


def _wildcards(parts: Iterable[str | bytes]) -> int:
    return sum(one in {"*", "**"} for one in parts)


def matches(pattern: str, path: bytes) -> bool:
    """Return whether ``path`` is what the pattern stands for. Raises :class:`PatternError`."""
    compiled, parts = compile_pattern(pattern), _parts(pattern)
    if _wildcards(parts) < 2:
        return compiled.fullmatch(path) is not None
    first, last = parts[0], parts[-1]
    if isinstance(first, bytes) and not path.startswith(first):
        return False
    if isinstance(last, bytes) and not path.endswith(last):
        return False
    # A regular expression tries each way to share the path out among several: a power of its
    # length, and the path is the tenant's. Here bit N of a number is for the place before byte N.
    size = len(path)
    others = _bits(size, (at for at, byte in enumerate(path) if byte != _SLASH))
    reached = 1
    for part in parts:
        if part == "**":
            reached = ((2 << size) - 1) & -(reached & -reached)
        elif part == "*":
            # What is added runs through all other bytes, up to the next slash.
            reached |= ((reached & others) + others) ^ others
        elif part == ID:
            reached = sum(
                (reached & _bits(size, (one.start() for one in each.finditer(path)))) << length
                for each, length in _ID_STARTS
            )
        else:
            assert isinstance(part, bytes)
            reached = (reached & _bits(size, _occurrences(part, path))) << len(part)
    return bool(reached >> size & 1)


def directory(pattern: str) -> bytes | None:
    """Return the directory that all paths of a pattern are in, without a slash at its end; None
    where it has no wildcard, and stands for one path. Raises :class:`PatternError`."""
    first, *more = _parts(pattern)
    if not more and isinstance(first, bytes):
        return None
    return first.rpartition(b"/")[0] if isinstance(first, bytes) else b""


_SLASH = ord("/")


def _occurrences(part: bytes, path: bytes) -> Iterator[int]:
    at = path.find(part)
    while at >= 0:
        yield at
        at = path.find(part, at + 1)


def _bits(size: int, numbers: Iterable[int]) -> int:
    """Return the number with these bits, of ``size`` and one more."""
    digits = bytearray(b"0") * (size + 1)
    for number in numbers:
        digits[size - number] = ord("1")
    return int(digits, 2)


def exactly(path: bytes) -> str:
    """Return the pattern that matches ``path`` and nothing else, one line of printable text."""
    if path.startswith(b"/"):
        return literal(path)
    return f"\\x{path[:1].hex()}{literal(path[1:])}" if path else ""


def literal(part: bytes) -> str:
    """Return what stands for a part of a path in a pattern."""
    return printable(part).replace("*", "\\*")
