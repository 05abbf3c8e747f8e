"""What a verifier remembers of a container, to see reboots and rollbacks, and to go on from."""

import hashlib
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from cima_runc.base import limits
from cima_runc.base.durable import replace_file
from cima_runc.base.errors import CimaError
from cima_runc.evidence.fields import U64, Digest, Hex, Model
from cima_runc.evidence.models import ContainerId, first_of


class StateError(CimaError):
    """What is remembered cannot be read or written."""


class Remembered(Model):
    """What the last evidence that was not refused proved."""

    version: Annotated[int, Field(ge=1, le=1)] = 1
    container: ContainerId
    ak_name: Hex
    reset_count: U64
    clock: U64
    seq: U64
    count: U64
    """Records that were verified."""
    cpcr: Digest
    """The register after them."""
    first: Digest
    """Digest of the container's first record, which tells one registration from the next."""
    registration: U64
    """The registration's number on the host."""
    dependencies: U64 | None
    """The number of the partition of its dependencies, as the registration says."""
    appraised_with: Digest | None
    """Identifies the reference values and policy by which all records so far were found to be
    good; None where they were not appraised, or not good."""


class StateDirectory:
    """A directory with one file a container."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def load(self, container: str) -> Remembered | None:
        """Return what is remembered, None where nothing is.

        Raises:
            StateError: the file cannot be read. Delete it to begin anew, knowing that a rollback
                until now would then go unseen.
        """
        path = self._path(container)
        try:
            with path.open("rb") as file:
                raw = file.read(limits.VERIFIER_INPUT)
            found = Remembered.model_validate_json(raw)
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            text = first_of(error) if isinstance(error, ValidationError) else error.strerror
            raise StateError(
                f"{path} cannot be read: {text}", hint="delete it to begin anew"
            ) from error
        return found

    def store(self, remembered: Remembered) -> None:
        """Remember, durably.

        Raises:
            StateError: it cannot be written.
        """
        path = self._path(remembered.container)
        try:
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
            replace_file(path, remembered.model_dump_json(indent=1).encode("ascii") + b"\n")
        except OSError as error:
            raise StateError(f"{path} cannot be written: {error.strerror}") from error

    def _path(self, container: str) -> Path:
        # Nothing that a container's id holds becomes part of a path.
        name = hashlib.sha256(container.encode("utf-8", "surrogatepass")).hexdigest()
        return self._root / f"{name}.json"
