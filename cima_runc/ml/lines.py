"""Lines of containers, and the runs of each: what a restart goes on from.

A container that is started again is another run of the same line: the same user's and owners', and
of the same name. A line's number of runs and its last run's register outlive its partitions, so
that a run that is not shown is missed. Source: design, section 6.

::

    /var/lib/cima/lines/<line>.json        {"line", "run", "last", "time"}, of root's containers
    /var/lib/cima/lines/<uid>/<line>.json  the same of a user's
"""

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

import rfc8785
from pydantic import Field, ValidationError

from cima_runc.base import limits
from cima_runc.base.bounded import read_bounded
from cima_runc.base.durable import replace_file, sync_directory
from cima_runc.base.errors import CimaError
from cima_runc.evidence.fields import Count, Digest, Model
from cima_runc.ml.contents import Engine, Previous
from cima_runc.ml.pods import pod_of

NAME_ANNOTATION = "io.cima.name"
"""A container's own name for its line."""

LineName = (
    tuple[Literal["annotation"], str] | tuple[Literal["cri"], str, str] | tuple[Literal["id"], str]
)

_PREFIX = b"cima-line-v2\0"
_FILE = re.compile(r"([0-9a-f]{64})\.json")
_USER = re.compile(r"[1-9][0-9]{0,9}")


class LineError(CimaError):
    """A line's state cannot be used."""


def line_name(container_id: str, annotations: Mapping[str, Any], engine: Engine) -> LineName:
    """Return what a container is called: by its own annotation, by the pod, or by its id.

    ``engine`` is the one that called. Where it is a CRI, the pod is as it wrote itself; containerd
    1.6 does not tell the pod's uid, and what kubelet starts anew stays in its sandbox.
    """
    own = annotations.get(NAME_ANNOTATION)
    if isinstance(own, str) and own:
        return ("annotation", own)
    pod = pod_of(engine, annotations)
    uid = pod.uid or (pod.sandbox if engine.name == "containerd" else "")
    if uid and pod.container:
        return ("cri", uid, pod.container)
    return ("id", container_id)


def line_of(user: int, owners: Iterable[str], name: LineName) -> bytes:
    """Return a container's line, 32 bytes: SHA256("cima-line-v2" NUL || JCS of all of these).

    ``owners`` are the texts of the owners' public keys, in any order.
    """
    whole: dict[str, Any] = {"user": user, "owners": sorted(set(owners)), "name": list(name)}
    return hashlib.sha256(_PREFIX + rfc8785.dumps(whole)).digest()


class LineState(Model):
    """What is known of a line, however little of its partitions is kept."""

    line: Digest
    run: Annotated[Count, Field(ge=1)]
    """The last number given to a run."""
    last: Previous | None
    """The last run that had a partition, where that partition is gone; None: see the partition."""
    time: str
    """When a run began last, RFC 3339."""


class Lines:
    """The files of all lines."""

    def __init__(self, directory: Path) -> None:
        """``directory`` is made when the first line comes."""
        self._directory = directory

    def read(self, line: bytes) -> LineState | None:
        """Return a line's state, None where there is none.

        Raises:
            LineError: it cannot be read.
        """
        path = self._path(line)
        try:
            raw = read_bounded(path, limits.LINE_STATE)
            if not raw.strip(b"\0"):
                return None  # the machine crashed before it became durable, and no run began
            state = LineState.model_validate_json(raw)
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            raise LineError(f"{path} cannot be read: {error}", hint="remove it") from error
        if state.line != line:
            raise LineError(f"{path} is of another line", hint="remove it")
        return state

    def write(self, state: LineState, *, durable: bool = True) -> None:
        """Put a line's state in place.

        Not ``durable``, for a line of which there is none: it is when :meth:`places` are.

        Raises:
            OSError: the old one is there still.
        """
        new = [each for each in (self._directory.parent, self._directory) if not each.is_dir()]
        for directory in new:
            directory.mkdir(mode=0o700)
            sync_directory(directory.parent)
        data = state.model_dump_json().encode("ascii") + b"\n"
        replace_file(self._path(state.line), data, durable=durable)

    def of_user(self, uid: int) -> "Lines":
        """Return the lines of a user's containers; those of root's, where that is 0, are these."""
        return Lines(self._directory / str(uid)) if uid else self

    def users(self) -> list[int]:
        """Return the users of whom there are lines."""
        names = os.listdir(self._directory) if self._directory.is_dir() else []
        return sorted(int(name) for name in names if _USER.fullmatch(name))

    def places(self, line: bytes) -> tuple[Path, Path]:
        """Return the file of a line, and the directory that its name is in."""
        return self._path(line), self._directory

    def remove(self, line: bytes) -> None:
        """Forget a line, where there is one of it."""
        self._path(line).unlink(missing_ok=True)

    def begun_before(self, time: str) -> list[bytes]:
        """Return the lines whose last run began before ``time`` (RFC 3339); not those that cannot
        be read."""
        found = []
        names = os.listdir(self._directory) if self._directory.is_dir() else []
        for name in names:
            if (match := _FILE.fullmatch(name)) is None:
                continue
            with suppress(LineError):
                state = self.read(bytes.fromhex(match[1]))
                if state is not None and state.time < time:
                    found.append(state.line)
        return found

    def forget_above(self, count: int, kept: frozenset[bytes]) -> int:
        """Remove the lines that were written the longest ago, until ``count`` are left, but those
        in ``kept``.

        Returns how many.
        """
        names = os.listdir(self._directory) if self._directory.is_dir() else []
        found = [bytes.fromhex(match[1]) for name in names if (match := _FILE.fullmatch(name))]
        too_many = len(found) - count
        if too_many <= 0:
            return 0
        free = [line for line in found if line not in kept]
        free.sort(key=lambda line: self._path(line).stat().st_mtime_ns)
        for line in free[:too_many]:
            self.remove(line)
        return min(too_many, len(free))

    def _path(self, line: bytes) -> Path:
        return self._directory / f"{line.hex()}.json"
