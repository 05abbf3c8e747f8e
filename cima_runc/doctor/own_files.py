"""The files of this installation: whose they are, and whether they are what was installed.

Lists of what was installed are each distribution's ``RECORD`` (SHA-256, in base64 without padding)
and, of the Debian package, dpkg's ``md5sums``, which has the byte code too. MD5 says that a file is
damaged or was edited; whether somebody made it look right is for a verifier, who has the kernel's
digests.

Source: packaging.python.org, "Recording installed projects"; deb-md5sums(5).
"""

import base64
import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import Distribution, distributions
from pathlib import Path, PurePath

from cima_runc.base.text import printable
from cima_runc.doctor.finding import UnfitError, some

_DPKG = Path("/var/lib/dpkg/info/cima-runc.md5sums")
_INSTALL = "install it again: apt reinstall cima-runc, or install.sh"
_OF_THE_ENVIRONMENT = frozenset({"pyvenv.cfg", ".gitignore", ".lock", "CACHEDIR.TAG"})


@dataclass(frozen=True)
class Listed:
    """What a list says of a file."""

    algorithm: str
    digest: str
    """Hexadecimal; empty where the list has none of this file."""
    there: bool
    """Whether the file must be there: a package leaves out some that a wheel had."""


def look(prefix: Path, owner: int, dpkg: Path = _DPKG) -> str:
    """Check every file below ``prefix`` and say what there is.

    Raises:
        UnfitError: a file is another user's, or can be written by others, or is not what was
            installed, or is gone, or came later.
        OSError: a file cannot be read.
    """
    listed = _listed(prefix, dpkg)
    found = {path: path.lstat() for path in _below(prefix)}
    _refuse("is not the user's whom the kernel's policy names", _not_of(found, owner))
    _refuse("can be written by others", _writable(found))
    files = [path for path, status in found.items() if stat.S_ISREG(status.st_mode)]
    _refuse(
        "is gone", sorted(path for path, at in listed.items() if at.there and path not in found)
    )
    _refuse("is not what was installed", _changed(files, listed))
    strange = [path for path in files if path not in listed and not _made(path, prefix, listed)]
    _refuse("was not installed", sorted(strange))
    checked = sum(1 for path in files if path in listed and listed[path].digest)
    byte_code = sum(1 for path in files if path.suffix == ".pyc" and not _has(listed, path))
    unlisted = f"; no list has {byte_code} of byte code" if byte_code else ""
    return f"{checked} files below {prefix} are what was installed{unlisted}"


def _refuse(what: str, paths: list[Path]) -> None:
    if paths:
        names = some([printable(str(path)) for path in paths])
        verb, _, rest = what.partition(" ")
        if len(paths) > 1:
            verb = {"is": "are", "was": "were"}.get(verb, verb)
        raise UnfitError(f"{names} {verb} {rest}", hint=_INSTALL)


def _below(prefix: Path) -> Iterator[Path]:
    for directory, _, names in os.walk(prefix):
        yield Path(directory)
        yield from (Path(directory, name) for name in names)


def _not_of(found: dict[Path, os.stat_result], owner: int) -> list[Path]:
    return sorted(path for path, status in found.items() if status.st_uid != owner)


def _writable(found: dict[Path, os.stat_result]) -> list[Path]:
    kinds = (stat.S_ISREG, stat.S_ISDIR)
    return sorted(
        path
        for path, status in found.items()
        if status.st_mode & 0o022 and any(is_kind(status.st_mode) for is_kind in kinds)
    )


def _changed(files: list[Path], listed: dict[Path, Listed]) -> list[Path]:
    changed = []
    for path in files:
        at = listed.get(path)
        if at is None or not at.digest:
            continue
        with path.open("rb") as file:
            if hashlib.file_digest(file, at.algorithm).hexdigest() != at.digest:
                changed.append(path)
    return sorted(changed)


def _has(listed: dict[Path, Listed], path: Path) -> bool:
    return path in listed and bool(listed[path].digest)


def _made(path: Path, prefix: Path, listed: dict[Path, Listed]) -> bool:
    """Whether Python itself makes this file: byte code of a listed module, or the environment's."""
    if path.suffix == ".pyc" and path.parent.name == "__pycache__":
        return path.parent.parent / f"{path.name.partition('.')[0]}.py" in listed
    inside = path.relative_to(prefix)
    return inside.parts[0] in _OF_THE_ENVIRONMENT or (
        inside.parts[0] == "bin" and inside.name.lower().startswith("activate")
    )


def _listed(prefix: Path, dpkg: Path) -> dict[Path, Listed]:
    found: dict[Path, Listed] = {}
    packages = [str(path) for path in sorted(prefix.glob("lib/python3*/site-packages"))]
    # Byte code is in dpkg's list alone; for all else a RECORD comes after, and its digest counts.
    if dpkg.is_file():
        for line in dpkg.read_text("utf-8", "surrogateescape").splitlines():
            digest, _, name = line.partition("  ")
            path = Path("/", name)
            if path.is_relative_to(prefix):
                found[path] = Listed("md5", digest, there=True)
    packaged = frozenset(found)
    for distribution in distributions(path=packages):
        for path, at in _recorded(distribution):
            if path.is_relative_to(prefix) and (at.digest or path not in found):
                there = path in packaged if packaged else at.there
                found[path] = replace(at, there=there)
    return found


def _recorded(distribution: Distribution) -> Iterator[tuple[Path, Listed]]:
    for file in distribution.files or ():
        path = Path(os.path.normpath(str(distribution.locate_file(PurePath(file)))))
        if file.hash is None:
            yield path, Listed("", "", there=False)
        else:
            padded = file.hash.value + "=" * (-len(file.hash.value) % 4)
            digest = base64.urlsafe_b64decode(padded).hex()
            yield path, Listed(file.hash.mode, digest, there=True)
