"""What a verifier remembers, to see restarts, reboots and rollbacks, and to go on from.

Of a container's line, by the attestation key's name and the line, which no tenant chooses: a
container's id is made anew, and another user's container may bear it. Of a host, by the key's name
alone: its TPM and its boot are the same for all of its containers. Source: design, section 7.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Protocol, TypeVar

from pydantic import Field, ValidationError

from cima_runc.base import limits
from cima_runc.base.bounded import read_bounded
from cima_runc.base.durable import replace_file
from cima_runc.base.errors import CimaError
from cima_runc.base.jsonio import JsonError, load_object
from cima_runc.base.text import printable
from cima_runc.evidence.errors import first_of
from cima_runc.evidence.fields import U64, Count, Digest, Hex, Model
from cima_runc.evidence.request import ContainerId, Since

VERSION = 2
_FIRST = 3
"""Records of a run before anything of it ran: ``register``, ``config``, ``rootfs``. What comes
next, an engine's init or the root filesystem after others' hooks, is judged with these."""


class StateError(CimaError):
    """What is remembered cannot be read or written."""


class StateVersionError(StateError):
    """What is remembered is of a version that this program does not read."""


class RememberedHost(Model):
    """What the latest evidence of a host that was not refused proved, of whichever container."""

    version: Annotated[int, Field(ge=VERSION, le=VERSION)] = VERSION
    ak_name: Annotated[Hex, Field(min_length=34, max_length=34)]
    boot_id: str
    """The kernel's boot in which what was shown was registered."""
    reset_count: U64
    restart_count: U64
    clock: U64
    initial: Digest | None
    foreign: Count
    gaps: Count

    @property
    def counters(self) -> tuple[int, int, int]:
        """resetCount, restartCount and clock, which never go back in this order."""
        return self.reset_count, self.restart_count, self.clock


class Remembered(RememberedHost):
    """What the last evidence of a line that was not refused proved, of line and host."""

    line: Digest
    container: ContainerId
    """The container that its last run was."""
    run: Annotated[Count, Field(ge=1)]
    registration: Count
    count: Count
    """Records of that run that were verified."""
    cpcr: Digest
    """The register after them."""
    inner: Digest
    """The same, masked: proves to the host that it was seen."""
    ended: str | None
    """The reason of the run's ``exit``, where that was among them."""
    earlier: Annotated[tuple[Count, ...], Field(max_length=64, strict=False)]
    """Registrations of its earlier runs that were seen, the latest of them."""
    dependencies: Count | None
    """Registration of the host services that it relies on."""
    good_with: Digest | None
    """Identifies the reference values and policy by which all records of the run so far were found
    to be good; None where they were not appraised, or not good."""
    earlier_good_with: Digest | None
    """The same of all runs before it, each seen to its end."""
    earlier_seen: bool
    """Whether all runs before it were seen, or vouched for, to their ends."""
    untrusted_run: Count | None
    """The latest run that was found UNTRUSTED."""
    untrusted_with: Digest | None
    """By which reference values and policy."""

    @property
    def since(self) -> Since:
        """What to ask for, to be shown only what is new."""
        return Since(run=self.run, count=self.count, inner=self.inner)

    @property
    def place(self) -> tuple[int, int, int]:
        """Run, its registration, and how many of its records were verified."""
        return self.run, self.registration, self.count

    @property
    def host(self) -> RememberedHost:
        """What the same evidence proved of the host alone."""
        of_host = RememberedHost.model_fields.keys()
        return RememberedHost(**{name: getattr(self, name) for name in of_host})


_Kept = TypeVar("_Kept", Remembered, RememberedHost)


class Memory(Protocol):
    """Where a verifier remembers."""

    def recall(self, ak_name: bytes, line: bytes, container: str) -> Remembered | None:
        """Return what is remembered of a line, None where nothing is.

        Raises:
            StateError: it cannot be read.
        """

    def recall_host(self, ak_name: bytes) -> RememberedHost | None:
        """Return what is remembered of a host, None where nothing is.

        Raises:
            StateError: it cannot be read.
        """

    def remember(self, remembered: Remembered) -> None:
        """Remember, durably, of line and host, unless something later is remembered already.

        Raises:
            StateError: it cannot be written.
        """


class StateDirectory:
    """A directory with one file a line and one a host. Several processes may use it."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def recall(self, ak_name: bytes, line: bytes, container: str) -> Remembered | None:
        """Return what is remembered of a line, None where nothing is.

        Raises:
            StateVersionError: what is remembered of the container is of version 1.
            StateError: the file cannot be read. Delete it to begin anew, knowing that a rollback
                until now would then go unseen.
        """
        self._refuse_version_1(container)
        found = self._read(self._path(ak_name, line), Remembered)
        if found is not None and (found.ak_name, found.line) != (ak_name, line):
            raise StateError(f"{self._path(ak_name, line)} is of another line")
        return found

    def recall_host(self, ak_name: bytes) -> RememberedHost | None:
        """Return what is remembered of a host, None where nothing is.

        Raises:
            StateError: the file cannot be read.
        """
        found = self._read(self._host_path(ak_name), RememberedHost)
        if found is not None and found.ak_name != ak_name:
            raise StateError(f"{self._host_path(ak_name)} is of another host")
        return found

    def remember(self, remembered: Remembered) -> None:
        """Remember, durably, of line and host, unless something later is remembered already.

        Raises:
            StateError: it cannot be written.
        """
        path = self._path(remembered.ak_name, remembered.line)
        try:
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._locked():
                self._replace(self._host_path(remembered.ak_name), remembered.host)
                self._replace(path, remembered)
        except OSError as error:
            raise StateError(f"{path} cannot be written: {error.strerror}") from error

    def _replace(self, path: Path, remembered: _Kept) -> None:
        known = self._read(path, type(remembered))
        if known is not None and known.counters > remembered.counters:
            return
        # What a host says of an end, or of its boot, may be any text.
        text = json.dumps(remembered.model_dump(mode="json"), indent=1)
        replace_file(path, text.encode("ascii") + b"\n")

    def since_of(self, container: str) -> Since | None:
        """Return what to ask for of a container; None where nothing, or not one thing alone, is
        remembered of it, or nothing of it had run: then all must be asked for.

        A file of another line, or of no line, that cannot be read spoils nothing: of this line
        :meth:`recall` says so.

        Raises:
            StateVersionError: what is remembered of the container is of version 1.
        """
        self._refuse_version_1(container)
        found = []
        for path in sorted(self._root.glob("*.json")) if self._root.is_dir() else []:
            with suppress(StateError):
                known = self._read(path, Remembered)
                found += [known.since] if known and known.container == container else []
        return found[0] if len(found) == 1 and found[0].count > _FIRST else None

    def _refuse_version_1(self, container: str) -> None:
        name = hashlib.sha256(container.encode("utf-8", "surrogatepass")).hexdigest()
        self._read(self._root / f"{name}.json", Remembered)

    def _read(self, path: Path, kind: type[_Kept]) -> _Kept | None:
        try:
            raw = read_bounded(path, limits.VERIFIER_INPUT)
            value = load_object(raw, what=str(path), limit=limits.VERIFIER_INPUT)
            version = value.get("version")
            if type(version) is not int or version != VERSION:
                raise StateVersionError(
                    f"{path} is of version {printable(str(version)[:20])}, expected {VERSION}",
                    hint="delete it to begin anew: what came before is then not compared",
                )
            return kind.model_validate(value)
        except FileNotFoundError:
            return None
        except (OSError, JsonError, ValidationError) as error:
            if isinstance(error, ValidationError):
                text = first_of(error)
            else:
                text = error.what if isinstance(error, JsonError) else str(error.strerror)
            raise StateError(
                f"{path} cannot be read: {text}", hint="delete it to begin anew"
            ) from error

    @contextmanager
    def _locked(self) -> Iterator[None]:
        handle = os.open(self._root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def _path(self, ak_name: bytes, line: bytes) -> Path:
        # Nothing that others choose becomes part of a path.
        return self._root / f"{hashlib.sha256(ak_name + line).hexdigest()}.json"

    def _host_path(self, ak_name: bytes) -> Path:
        return self._root / f"{hashlib.sha256(ak_name).hexdigest()}.host"
