"""The first process of a container, looked at closely before it is believed.

The kernel's own view in /proc and in the cgroup file systems, not what the hook says.
"""

import os
import select
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from cima_runc.base.errors import CimaError
from cima_runc.measure.config_summary import INITIAL_NETWORK

_NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")
PROC = Path("/proc")
CGROUP = Path("/sys/fs/cgroup")
_CATCHING_UP = 1000
"""How often processes are looked at that began while others were: each time there are few."""


class ProcessError(CimaError):
    """The process is not the first process of this container."""


@dataclass(frozen=True)
class ContainerProcess:
    """A process that was checked; the descriptors are held until :meth:`close`."""

    pid: int
    pidfd: int
    """Readable when the process has ended."""
    mntns_fd: int
    """Holds the mount namespace, so that its number is not used again."""
    namespaces: dict[str, int]
    """Inode number of each of its namespaces. Of the host's own network namespace it is the one
    that it has on every host since Linux 6.18 (:data:`INITIAL_NETWORK`): before, it is any, and
    nobody else could tell that a namespace which is joined by some path is the host's."""
    cgroup: str
    """Path of its cgroup, from the root of the hierarchy; empty where it has none of its own."""
    cgroup_id: int
    """The kernel's number of that cgroup in version 2, 0 where there is none."""
    start_ticks: int
    """When it started, in clock ticks since boot."""
    is_init: bool
    """Whether it is process 1 of a pid namespace: when it has ended, so have all others there."""

    @property
    def mntns(self) -> int:
        """Inode number of its mount namespace."""
        return self.namespaces["mnt"]

    def alive(self) -> bool:
        """Whether the process has not ended yet."""
        return not has_ended(self.pidfd)

    def cgroup_populated(self) -> bool:
        """Whether a process is left in the container's cgroup."""
        if not self.cgroup:
            return False
        for directory in _cgroup_directories(self.cgroup):
            with suppress(OSError):
                if (directory / "cgroup.events").exists():
                    return "populated 1" in (directory / "cgroup.events").read_text()
                return bool((directory / "cgroup.procs").read_text().strip())
        return False

    def survived(self, in_use: Collection[int] | None = None) -> bool:
        """Whether others of the container live, this process having ended.

        Those that it left in its cgroup or, where it has none of its own, in its mount namespace.
        ``in_use``: what :func:`namespaces_in_use` said a moment ago; None: it is looked now.
        """
        if self.cgroup_populated():
            return True
        if self.is_init:
            return False  # what was in its own pid namespace the kernel has killed with it
        if in_use is not None:
            return self.mntns in in_use
        return next(_in_namespace(self.mntns), None) is not None

    def close(self) -> None:
        """Let go of the process and of its namespace."""
        os.close(self.pidfd)
        os.close(self.mntns_fd)


def examine(
    pid: int, container_id: str, cgroups_path: str | None, *, needs_cgroup: bool = True
) -> ContainerProcess:
    """Check that ``pid`` is in a mount namespace of its own and in the container's cgroup.

    ``cgroups_path`` is ``linux.cgroupsPath`` of the configuration. Not ``needs_cgroup``: it may
    be in another cgroup, as where a user may make none.

    Raises:
        ProcessError: it is gone, on the host's mount namespace, or in another cgroup.
    """
    if pid <= 0:
        raise ProcessError("the hook's state names no process")
    try:
        pidfd = os.pidfd_open(pid)
    except OSError as error:
        raise ProcessError(f"process {pid} is gone") from error
    try:
        mntns_fd = os.open(PROC / str(pid) / "ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        os.close(pidfd)
        raise ProcessError(f"process {pid} is gone") from error
    try:
        cgroup = _cgroup(pid)
        belongs = cgroup_belongs(cgroup, container_id, cgroups_path)
        process = ContainerProcess(
            pid=pid,
            pidfd=pidfd,
            mntns_fd=mntns_fd,
            namespaces=_namespaces(pid) | {"mnt": os.fstat(mntns_fd).st_ino},
            cgroup=cgroup if belongs else "",
            cgroup_id=_cgroup_id(cgroup) if belongs else 0,
            start_ticks=start_ticks(pid),
            is_init=_is_init(pid),
        )
        if process.mntns in _host_namespaces():
            raise ProcessError(f"process {pid} is on the host's mount namespace")
        if needs_cgroup and not belongs:
            raise ProcessError(
                f"process {pid} is in the cgroup {cgroup}, which is not this container's"
            )
        # All of the above was read while the process lived, so it was read of this process.
        if not process.alive():
            raise ProcessError(f"process {pid} is gone")
    except OSError as error:
        os.close(pidfd)
        os.close(mntns_fd)
        raise ProcessError(f"process {pid} cannot be examined: {error}") from error
    except ProcessError:
        os.close(pidfd)
        os.close(mntns_fd)
        raise
    return process


def examine_survivor(
    mntns: int, started_after: int, container_id: str, cgroup: str
) -> ContainerProcess | None:
    """Return a process that a container's first process, which has ended, left behind.

    It is in the container's mount namespace ``mntns``, in its ``cgroup`` where that is not empty,
    and not older than ``started_after`` (clock ticks since boot). None: there is no such process.
    """
    for pid in _in_namespace(mntns):
        try:
            process = examine(pid, container_id, cgroup, needs_cgroup=bool(cgroup))
        except ProcessError:
            continue
        if process.mntns == mntns and process.start_ticks >= started_after:
            # Its end is not the end of the others.
            return replace(process, is_init=False)
        process.close()
    return None


def namespaces_in_use() -> frozenset[int]:
    """Return the mount namespaces of all processes: one look, however many are asked for."""
    return frozenset(namespace for _, namespace in _processes())


def _in_namespace(mntns: int) -> Iterator[int]:
    """Yield the processes in a mount namespace."""
    return (pid for pid, namespace in _processes() if namespace == mntns)


def _processes() -> Iterator[tuple[int, int]]:
    """Yield each process with the number of its mount namespace.

    Those that begin meanwhile too: one that forks and ends all the while would else be in no list.
    """
    last = _last_pid()
    pids: Iterable[int] = _listed()
    for _ in range(_CATCHING_UP):
        for pid in pids:
            with suppress(OSError):
                yield pid, _namespace(pid)
        now = _last_pid()
        if now == last:
            return
        pids = range(last + 1, now + 1) if now > last else _listed()
        last = now


def _listed() -> list[int]:
    return [int(name) for name in os.listdir(PROC) if name.isdigit()]


def _last_pid() -> int:
    """Return the number that was given to a process last (proc(5), loadavg)."""
    return int((PROC / "loadavg").read_bytes().split()[-1])


def cgroup_belongs(cgroup: str, container_id: str, cgroups_path: str | None) -> bool:
    """Whether a process of this container can be in ``cgroup``.

    ``cgroups_path`` is a path (the last part is the container's own), or ``slice:prefix:name`` for
    systemd's ``prefix-name.scope``; without one runtimes use the container's id. A runtime may put
    the processes into a cgroup below it.
    """
    if cgroups_path is None or not cgroups_path.strip("/"):
        expected = {container_id, f"crun-{container_id}.scope", f"runc-{container_id}.scope"}
    elif cgroups_path.count(":") == 2:
        _, prefix, name = cgroups_path.split(":")
        expected = {name if name.endswith(".slice") else f"{prefix}-{name}.scope".lstrip("-")}
    else:
        expected = {cgroups_path.rstrip("/").rpartition("/")[2]}
    return not expected.isdisjoint(cgroup.split("/"))


def start_ticks(pid: int) -> int:
    """Return when the process started (field 22 of proc(5) stat)."""
    after_name = (PROC / str(pid) / "stat").read_bytes().rpartition(b")")[2]
    return int(after_name.split()[19])


def _is_init(pid: int) -> bool:
    """Whether the number in its own pid namespace is 1 (proc(5), status, NSpid)."""
    status = (PROC / str(pid) / "status").read_bytes()
    numbers = next((line for line in status.splitlines() if line.startswith(b"NSpid:")), b"")
    return len(numbers.split()) > 2 and numbers.split()[-1] == b"1"


def _host_namespaces(name: str = "mnt") -> set[int]:
    found = {_namespace(os.getpid(), name)}
    # Some hosts are containers themselves, whose process 1 even root may not look at.
    with suppress(PermissionError):
        found.add(_namespace(1, name))
    return found


def _namespaces(pid: int) -> dict[str, int]:
    numbers = {}
    for name in _NAMESPACES:
        with suppress(FileNotFoundError):
            numbers[name] = _namespace(pid, name)
    if "net" in numbers and numbers["net"] in _host_namespaces("net"):
        numbers["net"] = INITIAL_NETWORK
    return numbers


def _namespace(pid: int, name: str = "mnt") -> int:
    return os.stat(PROC / str(pid) / "ns" / name).st_ino


def _cgroup(pid: int) -> str:
    """Return the path in version 2, or in the first version 1 hierarchy that is not the root."""
    found = "/"
    text = (PROC / str(pid) / "cgroup").read_text(encoding="utf-8", errors="surrogateescape")
    for line in text.splitlines():
        number, _, path = line.split(":", 2)
        if path != "/" and (number == "0" or found == "/"):
            found = path
    return found


def _cgroup_id(cgroup: str) -> int:
    for directory in _cgroup_directories(cgroup):
        if (directory / "cgroup.events").exists():
            return directory.stat().st_ino
    return 0


def _cgroup_directories(cgroup: str) -> list[Path]:
    relative = cgroup.lstrip("/")
    roots = [CGROUP, CGROUP / "unified", CGROUP / "pids", CGROUP / "memory", CGROUP / "systemd"]
    return [root / relative for root in roots if (root / relative / "cgroup.procs").exists()]


def has_ended(pidfd: int) -> bool:
    """Whether the process of a pidfd has ended."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))
