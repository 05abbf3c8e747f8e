"""The first process of a container, looked at closely before it is believed.

The kernel's own view in /proc and in the cgroup file systems, not what the hook says.
"""

import errno
import os
import select
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from cima_runc.base.errors import CimaError
from cima_runc.measure.config_summary import INITIAL_NETWORK
from cima_runc.ml.store import ContainerNote

_NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")
PROC = Path("/proc")
CGROUP = Path("/sys/fs/cgroup")
_CATCHING_UP = 1000
"""How often processes are looked at that began while others were: each time there are few."""
_CGROUPS = 10_000
"""How many cgroups below a container's are looked into."""
_GONE = (FileNotFoundError, ProcessLookupError)
_NO_PROCESS = frozenset({errno.ESRCH, errno.EINVAL, errno.ENOENT})
"""pidfd_open(2): it has ended, or is a thread other than the first (EINVAL, from 6.9 on ENOENT)."""


MarkOf = Callable[[int], int | None]
"""Returns, for a pidfd, the registration that the sensor has marked the process with."""


class ProcessError(CimaError):
    """The process is not the first process of this container."""


@dataclass(frozen=True)
class Living:
    """Whose the processes of this host are, at one moment."""

    namespaces: frozenset[int]
    """Inode numbers of their mount namespaces."""
    registrations: frozenset[int] = frozenset()
    """What the sensor has marked them with; a mark stays wherever a process goes."""


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
        """Whether a process is left in the container's cgroup, or in one below it."""
        if not self.cgroup:
            return False
        for directory in _cgroup_directories(self.cgroup):
            with suppress(OSError):
                if (directory / "cgroup.events").exists():
                    return "populated 1" in (directory / "cgroup.events").read_text()
                return _is_populated(directory)
        return False

    def left_behind(self, living: Living, registration: int) -> bool:
        """Whether it has left processes of the container, which is registered so, behind.

        Where it is process 1 of a pid namespace the kernel has killed them with it. Else they are
        in its mount namespace or, with the sensor's mark, anywhere. ``living`` is of a moment ago.
        """
        if self.is_init:
            return False
        return self.mntns in living.namespaces or registration in living.registrations

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
        mntns_fd = _open_namespace(pid)
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


def find_again(note: ContainerNote, mark_of: MarkOf | None = None) -> ContainerProcess | None:
    """Return a living process of a container that an earlier agent registered: its first one or,
    where that has ended, one that it left behind. None: there is none.

    The first is known by its number and its start, wherever it has gone since. The others are known
    by the sensor's mark. Where it cannot be asked for that (``mark_of`` is None), they are those in
    the container's mount namespace and, where it has one of its own, cgroup, which began later.

    Raises:
        OSError: it cannot be told.
    """
    first = _hold(note.pid, note)
    if first is not None and first.start_ticks == note.start_ticks:
        return first
    if first is not None:
        first.close()
    # One in the container's own namespace first: holding that keeps its number from another.
    for pid in sorted(_left_behind(note, mark_of), key=lambda pid: not _is_in(pid, note.mntns)):
        found = _hold(pid, note)
        if found is not None:
            # Its end is not the end of the others.
            return replace(found, is_init=False)
    return None


def _left_behind(note: ContainerNote, mark_of: MarkOf | None) -> Iterator[int]:
    for pid, namespace in _processes():
        if mark_of is not None:
            if _mark(pid, mark_of) == note.registration:
                yield pid
        elif namespace == note.mntns:
            with suppress(OSError):
                if start_ticks(pid) >= note.start_ticks and (
                    not note.cgroup or cgroup_belongs(_cgroup(pid), note.id, note.cgroup)
                ):
                    yield pid


def _hold(pid: int, note: ContainerNote) -> ContainerProcess | None:
    """Hold a process of this container, whatever namespaces and cgroup it is in by now."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return None
    try:
        mntns_fd = _open_namespace(pid)
    except OSError:
        os.close(pidfd)
        return None
    try:
        process = ContainerProcess(
            pid=pid,
            pidfd=pidfd,
            mntns_fd=mntns_fd,
            namespaces={"mnt": note.mntns},
            cgroup=note.cgroup,
            cgroup_id=_cgroup_id(note.cgroup) if note.cgroup else 0,
            start_ticks=start_ticks(pid),
            is_init=_is_init(pid),
        )
        if process.alive():
            return process
    except OSError:
        pass  # it has ended
    os.close(pidfd)
    os.close(mntns_fd)
    return None


def look_around(mark_of: MarkOf | None = None) -> Living:
    """Look once whose all processes are, however many containers are asked for.

    Raises:
        OSError: it cannot be looked at; then none may be taken for empty.
    """
    namespaces: set[int] = set()
    registrations: set[int | None] = set()
    for pid, namespace in _processes():
        namespaces.add(namespace)
        if mark_of is not None:
            registrations.add(_mark(pid, mark_of))
    return Living(frozenset(namespaces), frozenset(one for one in registrations if one is not None))


def _mark(pid: int, mark_of: MarkOf) -> int | None:
    try:
        handle = os.pidfd_open(pid)
    except OSError as error:
        if error.errno in _NO_PROCESS:
            return None
        raise
    try:
        return mark_of(handle)
    finally:
        os.close(handle)


def _is_in(pid: int, mntns: int) -> bool:
    with suppress(OSError):
        return _namespace(pid) == mntns
    return False


def _processes() -> Iterator[tuple[int, int]]:
    """Yield each living process with the number of its mount namespace.

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
    return _of_threads(pid, name, lambda path: os.stat(path).st_ino)


def _open_namespace(pid: int) -> int:
    return _of_threads(pid, "mnt", lambda path: os.open(path, os.O_RDONLY | os.O_CLOEXEC))


def _of_threads(pid: int, name: str, look: Callable[[Path], int]) -> int:
    """Look at a namespace of a process where the kernel shows it: at its first thread or, where
    that has ended and others go on, at one of these.

    Raises:
        OSError: it has ended, or the kernel has no such namespaces.
    """
    directory = PROC / str(pid)
    try:
        return look(directory / "ns" / name)
    except _GONE as error:
        gone = error
    looked_at: set[str] = set()
    # Threads, too, may begin and end all the while.
    for _ in range(_CATCHING_UP):
        threads = set(os.listdir(directory / "task")) - looked_at
        if not threads:
            break
        for thread in threads:
            with suppress(*_GONE):
                return look(directory / "task" / thread / "ns" / name)
        looked_at |= threads
    raise gone


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


def _is_populated(directory: Path) -> bool:
    """Whether a process is in a cgroup of version 1, or in one below it."""
    todo = [directory]
    for _ in range(_CGROUPS):
        if not todo:
            return False
        here = todo.pop()
        with suppress(FileNotFoundError):
            if (here / "cgroup.procs").read_text().strip():
                return True
            todo += [below for below in here.iterdir() if below.is_dir()]
    return True  # whoever makes so many hides something


def _cgroup_directories(cgroup: str) -> list[Path]:
    relative = cgroup.lstrip("/")
    roots = [CGROUP, CGROUP / "unified", CGROUP / "pids", CGROUP / "memory", CGROUP / "systemd"]
    return [root / relative for root in roots if (root / relative / "cgroup.procs").exists()]


def has_ended(pidfd: int) -> bool:
    """Whether the process of a pidfd has ended."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))
