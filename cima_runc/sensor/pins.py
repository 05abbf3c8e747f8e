"""Sensors in the BPF file system, where they outlive the agent that loaded them.

::

    /sys/fs/bpf/cima/            root's only, locked by the agent that uses it
      1-0123456789abcdef/        a sensor: the layout of its maps, and a hash of what was loaded
        map-NAME program-NAME    what the agent opens
        link-NAME                what keeps a program attached; gone once another has taken over

A directory whose name ends in ``-new`` is of a sensor that its agent did not live to finish.
"""

import fcntl
import os
import secrets
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from cima_runc.base.errors import CimaError
from cima_runc.sensor.libbpf import Libbpf

DIRECTORY: Final = Path("/sys/fs/bpf/cima")

_UNFINISHED: Final = "-new"


class PinsError(CimaError):
    """Sensors cannot be kept in the BPF file system."""


@dataclass(frozen=True)
class Handles:
    """Descriptors of one sensor in the kernel, by the names in its source."""

    maps: dict[str, int]
    programs: dict[str, int]
    links: dict[str, int]
    """What keeps the programs attached; none where pins do."""

    def close(self) -> None:
        """Close the descriptors; what is not pinned is gone with them."""
        for some in (self.links, self.programs, self.maps):
            for handle in some.values():
                os.close(handle)


class Pins:
    """The directory of pinned sensors, which is this process's alone until it is closed."""

    def __init__(self, libbpf: Libbpf, directory: Path, lock: int) -> None:
        self._libbpf = libbpf
        self._directory = directory
        self._lock = lock

    @classmethod
    def open(cls, libbpf: Libbpf, directory: Path) -> Self:
        """Make the directory if need be, and lock it.

        Raises:
            PinsError: there is no BPF file system, others could have been in the directory, or
                another agent has it.
        """
        try:
            directory.mkdir(mode=0o700, exist_ok=True)
            lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise PinsError(
                f"{directory} cannot be used: {error.strerror}",
                hint="mount -t bpf bpf /sys/fs/bpf",
            ) from error
        try:
            found = os.fstat(lock)
            if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
                raise PinsError(
                    f"{directory} is not root's alone",
                    hint="see who made it, remove it, and start the agent again",
                )
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(lock)
            raise PinsError(
                f"another agent uses the sensor in {directory}", hint="stop it first"
            ) from error
        except BaseException:
            os.close(lock)
            raise
        return cls(libbpf, directory, lock)

    def names(self) -> list[str]:
        """Return the names of the finished sensors; what is left of unfinished ones is removed."""
        found = []
        for name in sorted(os.listdir(self._directory)):
            if name.endswith(_UNFINISHED):
                self.remove(name)
            else:
                found.append(name)
        return found

    def pin(self, name: str, handles: Handles, maps: Iterable[str]) -> None:
        """Pin a sensor as ``name``: of its maps those in ``maps``, all its programs and links.

        Raises:
            OSError: it is not pinned.
        """
        building = self._directory / (name + _UNFINISHED)
        building.mkdir(mode=0o700)
        wanted = {
            "map": {map_: handles.maps[map_] for map_ in maps},
            "program": handles.programs,
            "link": handles.links,
        }
        for kind, some in wanted.items():
            for one, handle in some.items():
                self._libbpf.pin(handle, os.fsencode(building / f"{kind}-{one}"))
        building.rename(self._directory / name)

    def open_sensor(self, name: str) -> Handles:
        """Open the sensor that is pinned as ``name``.

        Raises:
            OSError: a pin cannot be opened.
        """
        handles = Handles({}, {}, {})
        opened = {"map": handles.maps, "program": handles.programs}
        directory = self._directory / name
        try:
            for pin in sorted(os.listdir(directory)):
                kind, _, one = pin.partition("-")
                if kind in opened:
                    opened[kind][one] = self._libbpf.open_pinned(os.fsencode(directory / pin))
        except BaseException:
            handles.close()
            raise
        return handles

    def whole(self, name: str) -> bool:
        """Whether all programs of this sensor are attached."""
        pins = [pin.partition("-") for pin in os.listdir(self._directory / name)]
        programs, links = (
            {one for kind, _, one in pins if kind == wanted} for wanted in ("program", "link")
        )
        return bool(programs) and programs == links

    def set_aside(self, name: str) -> None:
        """Give a sensor that is detached another name, so that one can be pinned as ``name``."""
        (self._directory / name).rename(self._directory / f"{name}-{secrets.token_hex(4)}")

    def detach(self, name: str) -> None:
        """Detach a sensor's programs; its maps stay."""
        directory = self._directory / name
        for pin in os.listdir(directory):
            if pin.startswith("link-"):
                (directory / pin).unlink()

    def remove(self, name: str) -> None:
        """Detach a sensor and remove it with all that it holds."""
        directory = self._directory / name
        for pin in os.listdir(directory):
            (directory / pin).unlink()
        directory.rmdir()

    def close(self) -> None:
        """Let another process have the directory."""
        os.close(self._lock)
