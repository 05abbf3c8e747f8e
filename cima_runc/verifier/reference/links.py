"""Symbolic links of an image, followed as the kernel does."""

from collections.abc import Mapping

from cima_runc.base import limits
from cima_runc.verifier.reference.file import ReferenceFile

LONGEST = 4 * limits.PATH
"""Characters of a path that the kernel takes, escaped. Nothing is called by a longer one, and to
look at each directory above it takes the square of its length."""
_LINKS = 40
"""Symbolic links followed in one path (MAXSYMLINKS in linux/namei.h)."""


def real(path: str, files: Mapping[str, ReferenceFile]) -> str:
    """Return a path without symbolic links; what the image does not have stays as it is, and so
    does what no kernel takes.

    ``files`` are the flattened image; all paths are absolute and escaped as in a manifest.
    """
    todo = _names(path)
    if sum(map(len, todo)) + len(todo) > LONGEST:
        return path
    at: list[str] = []
    links = 0
    while todo:
        name = todo.pop()
        if name == "..":
            del at[-1:]
            continue
        here = f"{at[-1] if at else ''}/{name}"
        found = files.get(here)
        link = found.link if found is not None else None
        if link is None or links == _LINKS:
            at.append(here)
            continue
        links += 1
        if link.startswith("/"):
            at.clear()
        todo += _names(link)
        if sum(map(len, todo)) + len(todo) > LONGEST:
            return path
    return at[-1] if at else "/"


def _names(path: str) -> list[str]:
    """Return the names of a path, the last first."""
    return [name for name in reversed(path.split("/")) if name not in {"", "."}]
