"""Manifests by their digest, once for all containers, and which layer had which.

    manifests/<hex digest>.mtree      a manifest; its name is the SHA-256 of its bytes
    layers/<hex of key>.json          what a layer's directory measured, and its fingerprint then

Both directories are root's alone (0700), files 0600, and every file comes to be by rename(2). No
name in them is chosen by anybody else.
"""

import hashlib
import json
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from io import BufferedReader
from pathlib import Path
from types import TracebackType
from typing import Self

from cima_runc.base import limits
from cima_runc.base.durable import sync_directory
from cima_runc.base.errors import CimaError
from cima_runc.base.replaced import replace
from cima_runc.base.text import printable
from cima_runc.measure.mtree import FORMAT, unescape

_USED_SECONDS = 3600.0
"""How exactly it is known when a manifest was used."""
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")


class StoreError(CimaError):
    """A directory of the store is not safe to use, or does not have what was asked for."""


def _private_directory(path: Path) -> Path:
    """Make a directory that only its owner can enter, or make sure that it is one."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise StoreError(
            f"{printable(str(path))} is not a directory of uid {os.geteuid()} with mode 0700",
            hint="remove it, or give it that owner and mode",
        )
    return path


class PendingManifest:
    """A manifest that is being written; it vanishes unless it is kept."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._path = directory / f".{secrets.token_hex(16)}.tmp"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self._file = os.fdopen(os.open(self._path, flags, 0o600), "wb", limits.MIB)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        self._path.unlink(missing_ok=True)

    def write(self, data: bytes) -> None:
        """Append to the manifest."""
        self._file.write(data)

    def keep(self, digest: str) -> None:
        """Make what was written durable under its digest (`sha256:` and hex)."""
        target = self._directory / _name(digest)
        if target.exists():
            return
        self._file.flush()
        os.fsync(self._file.fileno())
        self._path.rename(target)
        sync_directory(self._directory)


def _name(digest: str) -> str:
    match = _DIGEST.fullmatch(digest)
    if not match:
        raise StoreError(
            f"not a digest: {printable(digest[:200])}", hint="use sha256: and 64 digits"
        )
    return f"{match[1]}.mtree"


class ManifestStore:
    """The manifests of all measured layers."""

    def __init__(self, directory: Path) -> None:
        self._directory = _private_directory(directory)

    def new(self) -> PendingManifest:
        """Begin a manifest, whose digest is known only at its end."""
        return PendingManifest(self._directory)

    def has(self, digest: str) -> bool:
        """Whether the store has a manifest, and it is what its name says; it is used now."""
        try:
            with self.open(digest) as manifest:
                whole = hashlib.file_digest(manifest, "sha256").hexdigest() == digest[7:]
                if whole and time.time() - os.fstat(manifest.fileno()).st_mtime > _USED_SECONDS:
                    os.utime(manifest.fileno())
                return whole
        except StoreError:
            return False

    def open(self, digest: str) -> BufferedReader:
        """Return an open manifest. Raises :class:`StoreError`."""
        try:
            fd = os.open(self._directory / _name(digest), os.O_RDONLY | os.O_NOFOLLOW)
        except OSError as error:
            raise StoreError(f"the manifest {digest} is not kept: {error.strerror}") from None
        return os.fdopen(fd, "rb")

    def prune(self, quota: int) -> int:
        """Remove the manifests that were used the longest ago, until all have at most ``quota``
        bytes, and what an agent that was killed left half written; return how many.

        Whoever needs one that is gone measures its layer again.
        """
        found = []
        for path in [*self._directory.glob("*.mtree"), *_abandoned(self._directory)]:
            with suppress(FileNotFoundError):
                status = path.stat()
                used = status.st_mtime if path.suffix == ".mtree" else 0
                found.append((used, status.st_size, path))
        too_much = sum(size for _, size, _ in found) - quota
        gone = 0
        for used, size, path in sorted(found):
            if used and too_much <= 0:
                break
            path.unlink(missing_ok=True)
            too_much -= size
            gone += 1
        return gone


_ABANDONED_SECONDS = 86_400.0
"""How long ago a file must have been begun that nobody is writing any more."""


def _abandoned(directory: Path) -> Iterator[Path]:
    before = time.time() - _ABANDONED_SECONDS
    for path in directory.glob(".*.tmp"):
        with suppress(FileNotFoundError):
            if path.stat().st_mtime < before:
                yield path


@dataclass(frozen=True, slots=True)
class CachedLayer:
    """What a layer's directory measured while its tree had this fingerprint."""

    path: str
    """The directory, escaped as in a manifest."""
    fingerprint: str
    digest: str
    entries: int
    files: int
    bytes: int


class LayerCache:
    """What layers measured, by the directory and the way that it was read."""

    def __init__(self, directory: Path) -> None:
        self._directory = _private_directory(directory)

    def get(self, key: str, fingerprint: str) -> CachedLayer | None:
        """Return what a layer measured, if its tree is as it was. What is corrupt is not there."""
        try:
            with (self._directory / _entry_name(key)).open("rb") as file:
                found = _parse(file.read(_ENTRY + 1))
        except OSError:
            return None
        return found if found and found.fingerprint == fingerprint else None

    def put(self, key: str, layer: CachedLayer) -> None:
        """Remember what a layer measured."""
        temporary = self._directory / f".{secrets.token_hex(16)}.tmp"
        path = self._directory / _entry_name(key)
        replace(path, _format(layer), temporary=temporary, sync=False)

    def prune(self) -> int:
        """Remove what is known of directories that are gone; return how many those were."""
        gone = [*_abandoned(self._directory)]
        for path in self._directory.iterdir():
            if path.suffix == ".tmp":
                continue
            with suppress(FileNotFoundError), path.open("rb") as file:
                found = _parse(file.read(_ENTRY + 1))
                if found is None or not Path(os.fsdecode(unescape(found.path))).is_dir():
                    gone.append(path)
        for path in gone:
            path.unlink(missing_ok=True)
        return len(gone)


_VERSION = f"cima-cache-1 {FORMAT}"
_ENTRY = 64 * limits.KIB


def _entry_name(key: str) -> str:
    return hashlib.sha256(os.fsencode(key)).hexdigest() + ".json"


def _format(layer: CachedLayer) -> bytes:
    body = json.dumps({"version": _VERSION} | asdict(layer), sort_keys=True).encode()
    return body + b"\n" + hashlib.sha256(body).hexdigest().encode() + b"\n"


def _parse(data: bytes) -> CachedLayer | None:
    body, _, digest = data.partition(b"\n")
    if digest != hashlib.sha256(body).hexdigest().encode() + b"\n":
        return None
    values = json.loads(body)
    if values.pop("version") != _VERSION:
        return None
    return CachedLayer(**values)
