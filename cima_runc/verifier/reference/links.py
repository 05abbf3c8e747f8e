"""Symbolic links of an image, followed as the kernel does."""

from collections.abc import Mapping

from cima_runc.verifier.reference.file import ReferenceFile

_LINKS = 40
"""Symbolic links followed in one path (MAXSYMLINKS in linux/namei.h)."""


def real(path: str, files: Mapping[str, ReferenceFile]) -> str:
    """Return a path without symbolic links; what the image does not have stays as it is.

    ``files`` are the flattened image; all paths are absolute and escaped as in a manifest.
    """
    at: list[str] = []
    todo = path.split("/")[::-1]
    links = 0
    while todo:
        name = todo.pop()
        if name in {"", "."}:
            continue
        if name == "..":
            del at[-1:]
            continue
        found = files.get("/" + "/".join([*at, name]))
        if found is None or found.link is None or links == _LINKS:
            at.append(name)
            continue
        links += 1
        if found.link.startswith("/"):
            at.clear()
        todo += found.link.split("/")[::-1]
    return "/" + "/".join(at)
