"""The services that a container relies on: found by walking the processes behind its first one.

Ancestors of the container's first process are the runtime, and the shim, conmon, shell or whatever
started it, up to process 1. Behind a containerd shim is the containerd that listens on the socket
which the shim was given, and dockerd where the shim is Docker's; behind conmon is Podman. To these
comes our own code. Of each: the executable and every file that is mapped executable.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal

import psutil

from cima_runc.base import limits
from cima_runc.base.bounded import read_bounded
from cima_runc.base.errors import CimaError
from cima_runc.ima.template import Func
from cima_runc.measure.command_line import command_line
from cima_runc.measure.file_digest import Identity, identity_of
from cima_runc.measure.outside import in_mount_namespace_of, in_our_pid_namespace
from cima_runc.measure.own_code import own_files
from cima_runc.measure.procfs import (
    ProcfsError,
    flag_value,
    parse_maps,
    parse_unix_listeners,
    without_deleted,
)

Role = Literal[
    "runtime", "shim", "conmon", "podman", "containerd", "dockerd", "init", "ancestor", "agent"
]

PROC = b"/proc"
_DEFAULT_ADDRESS = "/run/containerd/containerd.sock"
"""What dockerd uses without ``--containerd``, where it is there."""
DOCKER_NAMESPACE = "moby"
"""The namespace that Docker uses in containerd."""
_WALK_AGAIN_SECONDS = 60.0
"""How old what was seen of a long-lived service may be."""


class HostServiceError(CimaError):
    """A service cannot be found, or not be looked at."""


@dataclass(frozen=True)
class ServiceFile:
    """A file that a service runs."""

    path: bytes
    """As the kernel shows it, absolute in the service's mount namespace."""
    func: Func
    open_as: bytes
    """A path that opens this very file, even where it was removed or replaced since."""
    identity: Identity | None
    """None where it cannot be looked at."""
    error: str = ""
    """Why not."""


@dataclass(frozen=True)
class Service:
    """A service as it was found."""

    role: Role
    pid: int
    start_ticks: int
    files: tuple[ServiceFile, ...]
    """Its executable first."""

    @property
    def path(self) -> bytes:
        """Path of its executable."""
        return self.files[0].path


@dataclass(frozen=True)
class NotFound:
    """A service that should be there and was not found, or not looked at."""

    role: Role
    reason: str


@dataclass(frozen=True)
class Chain:
    """All that one container relies on."""

    services: tuple[Service, ...] = ()
    not_found: tuple[NotFound, ...] = ()

    @property
    def key(self) -> frozenset[tuple[str, bytes]]:
        """What tells one chain from another: roles and paths of executables."""
        found = {(service.role, service.path) for service in self.services}
        return frozenset(found | {(missing.role, b"") for missing in self.not_found})


class Finder:
    """Finds services, and remembers the long-lived ones. May be used by several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._memory = _Memory()

    def find(self, pid: int, *, runs: bool = False) -> Chain:
        """Return what the container with the first process ``pid`` relies on.

        ``runs``: the container is not being made, so its process is no more the runtime's child.

        Raises:
            HostServiceError: the process is gone.
        """
        with self._lock:
            return _Search(self._memory).run(pid, runs=runs)

    def forget(self) -> None:
        """Look for long-lived services and walk them again, when next they are wanted."""
        with self._lock:
            self._memory = _Memory()


@dataclass
class _Memory:
    """What was seen, and when (by the monotonic clock)."""

    walked: dict[tuple[Role, int, int], tuple[float, Service]] = field(default_factory=dict)
    """Long-lived services by role, pid and start."""
    daemons: dict[tuple[Role, str], list[tuple[int, int]]] = field(default_factory=dict)
    """Pids and starts, by the address that led to them."""
    podman: dict[Identity, tuple[float, Service]] = field(default_factory=dict)


class _Search:
    """One search; a service that is not found does not end it."""

    def __init__(self, memory: _Memory) -> None:
        self._memory = memory
        self._services: list[Service] = []
        self._not_found: list[NotFound] = []

    def run(self, pid: int, *, runs: bool) -> Chain:
        self._ancestors(pid, runs)
        self._attempt("agent", lambda: [self._long_lived("agent", os.getpid())])
        return Chain(tuple(self._services), tuple(self._not_found))

    def _attempt(self, role: Role, find: Callable[[], list[Service]]) -> None:
        try:
            self._services.extend(find())
        except CimaError as error:
            self._not_found.append(NotFound(role, error.what))
        except (OSError, psutil.Error) as error:
            self._not_found.append(NotFound(role, f"it cannot be looked at: {error}"))

    def _ancestors(self, pid: int, runs: bool) -> None:
        for number, ancestor in enumerate(ancestors_of(pid)):
            self._ancestor(ancestor, is_runtime=number == 0 and not runs)

    def _ancestor(self, pid: int, *, is_runtime: bool) -> None:
        name = b""
        with suppress(OSError):
            name = os.path.basename(executable(pid))
        if pid == 1:
            self._attempt("init", lambda: [self._long_lived("init", pid)])
        elif is_runtime:
            self._attempt("runtime", lambda: [walk("runtime", pid)])
        elif name.startswith(b"containerd-shim"):
            self._attempt("shim", lambda: [walk("shim", pid)])
            self._behind_shim(pid)
        elif name == b"conmon":
            self._attempt("conmon", lambda: [walk("conmon", pid)])
            self._attempt("podman", lambda: self._behind_conmon(pid))
        else:
            self._attempt("ancestor", lambda: [self._long_lived("ancestor", pid)])

    # -- containerd and dockerd ---------------------------------------------------------------

    def _behind_shim(self, shim: int) -> None:
        # A name makes us look; who listens is the kernel's word.
        try:
            argv = command_line(shim)
        except OSError as error:
            self._not_found.append(NotFound("containerd", f"the shim has ended: {error}"))
            return
        address = (flag_value(argv, "address") or "").removeprefix("unix://")
        self._attempt("containerd", lambda: self._containerd(address, shim))
        namespace = flag_value(argv, "namespace") or ""
        # With userns-remap there follows -UID.GID.
        if namespace.partition("-")[0] == DOCKER_NAMESPACE:
            self._attempt("dockerd", lambda: self._dockerd(address, shim))

    def _containerd(self, address: str, shim: int) -> list[Service]:
        if not address:
            raise HostServiceError("the shim was given no -address of its containerd")
        found = self._daemon("containerd", address, lambda: _containerds(address, shim))
        if not found:
            raise HostServiceError(f"no process listens on {address}, the shim's containerd")
        return found

    def _dockerd(self, address: str, shim: int) -> list[Service]:
        found = self._daemon("dockerd", address, lambda: dockerds(address, shim))
        if not found:
            raise HostServiceError(f"no dockerd uses the containerd at {address}")
        return found

    def _daemon(self, role: Role, key: str, look: Callable[[], list[int]]) -> list[Service]:
        remembered = self._memory.daemons.get((role, key), [])
        if not remembered or not all(_lives(*process) for process in remembered):
            remembered = [(pid, start_ticks(pid)) for pid in look()]
            self._memory.daemons[role, key] = remembered
        return [self._long_lived(role, pid) for pid, _ in remembered]

    def _long_lived(self, role: Role, pid: int) -> Service:
        key = (role, pid, start_ticks(pid))
        known = self._memory.walked.get(key)
        if known is None or time.monotonic() - known[0] > _WALK_AGAIN_SECONDS:
            service = walk(role, pid, own_code() if role == "agent" else ())
            known = self._memory.walked[key] = (time.monotonic(), service)
        return known[1]

    # -- Podman -------------------------------------------------------------------------------

    def _behind_conmon(self, conmon: int) -> list[Service]:
        # conmon outlives podman, and runs this when the container has ended.
        path = flag_value(command_line(conmon), "exit-command")
        if path is None:
            raise HostServiceError("conmon was given no --exit-command: which engine is it of?")
        program = b"%s/%d/root%s" % (PROC, conmon, os.fsencode(path))
        identity = identity_of(program)
        known = self._memory.podman.get(identity)
        if known is None or time.monotonic() - known[0] > _WALK_AGAIN_SECONDS:
            known = (time.monotonic(), self._podman(os.fsencode(path), program, identity))
            self._memory.podman[identity] = known
        return [known[1]]

    def _podman(self, path: bytes, program: bytes, identity: Identity) -> Service:
        for pid in psutil.pids():
            with suppress(OSError, CimaError):
                is_podman = identity_of(b"%s/%d/exe" % (PROC, pid)) == identity
                if is_podman and in_our_pid_namespace(pid):
                    return walk("podman", pid)
        real = os.path.realpath(path)
        return Service("podman", 0, 0, (ServiceFile(real, Func.BPRM_CHECK, program, identity),))


def walk(role: Role, pid: int, more: tuple[ServiceFile, ...] = ()) -> Service:
    """Return what a process runs: its executable, files mapped executable, and ``more``.

    Raises:
        HostServiceError: it ended, or it is a kernel's thread, or runs too many files.
        OSError: it must not be looked at.
    """
    started = start_ticks(pid)
    try:
        path = executable(pid)
        files = [_file(path, Func.BPRM_CHECK, b"%s/%d/exe" % (PROC, pid))]
        files += _mapped(pid, files[0])
    except (FileNotFoundError, ProcessLookupError) as error:
        raise HostServiceError(f"process {pid} ended while it was looked at") from error
    except ProcfsError as error:
        raise HostServiceError(f"process {pid}: {error.what}") from error
    if start_ticks(pid) != started:
        raise HostServiceError(f"process {pid} ended while it was looked at")
    files += more
    if len(files) > limits.HOST_SERVICE_FILES:
        raise HostServiceError(f"process {pid} runs more than {limits.HOST_SERVICE_FILES} files")
    return Service(role, pid, started, tuple(files))


def own_code() -> tuple[ServiceFile, ...]:
    """Return the files of our own installation."""
    started = int(psutil.Process().create_time() * 1e9)
    return tuple(_file(path, func, path) for path, func in own_files(started))


def standard_library() -> bytes:
    """Return the directory of Python's own library, of which :func:`own_code` holds nothing."""
    return os.fsencode(os.path.dirname(os.path.realpath(os.__file__)))


def start_ticks(pid: int) -> int:
    """Return when a process started (field 22 of proc(5) stat).

    Raises:
        HostServiceError: it is gone.
    """
    return _parent_and_start(pid)[1]


def _parent_and_start(pid: int) -> tuple[int, int]:
    """Return fields 4 and 22 of proc(5) stat. Raises as :func:`start_ticks`."""
    try:
        text = read_bounded(b"%s/%d/stat" % (PROC, pid), limits.READ_SOON)
        fields = text.rpartition(b")")[2].split()
        return int(fields[1]), int(fields[19])
    except (OSError, IndexError, ValueError) as error:
        raise HostServiceError(f"process {pid} has ended") from error


def ancestors_of(pid: int) -> Iterator[int]:
    """Yield the ancestors of a process, its parent first. Raises as :func:`start_ticks`."""
    parent, started = _parent_and_start(pid)
    while parent:
        try:
            above, born = _parent_and_start(parent)
        except HostServiceError:
            born = started + 1
        if born > started:
            # Its parent has ended, and perhaps left its number to another: who has it now?
            given_to, _ = _parent_and_start(pid)
            if given_to == parent:
                raise HostServiceError(f"the ancestors of process {pid} are not known")
            parent = given_to
            continue
        yield parent
        pid, parent, started = parent, above, born


def _lives(pid: int, started: int) -> bool:
    try:
        return start_ticks(pid) == started
    except HostServiceError:
        return False


def executable(pid: int) -> bytes:
    """Return the path of what a process runs. Raises :class:`OSError`: it is gone."""
    return without_deleted(os.readlink(b"%s/%d/exe" % (PROC, pid)))


def _mapped(pid: int, executable: ServiceFile) -> Iterator[ServiceFile]:
    maps = read_bounded(b"%s/%d/maps" % (PROC, pid), limits.PROC_MAPS)
    if len(maps) > limits.PROC_MAPS:
        raise ProcfsError(f"its maps have more than {limits.PROC_MAPS} bytes")
    for mapping in parse_maps(maps):
        link = b"%s/%d/map_files/%s" % (PROC, pid, mapping.name.encode("ascii"))
        path = mapping.path
        try:
            path = without_deleted(os.readlink(link))
            file = _file(path, Func.MMAP_CHECK, link)
        except OSError:
            # Not allowed to everybody who may read maps, or unmapped just now.
            link = b"%s/%d/root%s" % (PROC, pid, path)
            file = _file(path, Func.MMAP_CHECK, link)
            if file.identity is not None and file.identity.inode != mapping.inode:
                error = "it was replaced, and what is mapped cannot be opened"
                file = ServiceFile(path, Func.MMAP_CHECK, link, None, error)
        if (file.path, file.identity) != (executable.path, executable.identity):
            yield file


def _file(path: bytes, func: Func, open_as: bytes) -> ServiceFile:
    try:
        return ServiceFile(path, func, open_as, identity_of(open_as))
    except OSError as error:
        return ServiceFile(path, func, open_as, None, error.strerror or "it cannot be looked at")


def _containerds(address: str, shim: int) -> list[int]:
    return _nearest(_listeners(os.fsencode(address), b"self", uid=0), shim)


def _nearest(found: list[int], shim: int) -> list[int]:
    """Return those that see the file systems that a shim sees, if there are such: its daemons.

    A container may have the host's numbers of processes, its network and its root's, and then every
    name; but its own file systems. A daemon that was started anew need not have the shim's.
    """
    return [pid for pid in found if in_mount_namespace_of(pid, shim)] or found


def _listeners(path: bytes, seen_by: bytes, *, uid: int) -> list[int]:
    """Return the processes of a user's, outside of containers, that hold a socket listening on
    ``path``.

    ``seen_by`` is a process in the same network namespace. A container on the host's network can
    have a socket of that name too, and so can any user: it is a name below his own root.
    """
    text = read_bounded(b"%s/%s/net/unix" % (PROC, seen_by), limits.PROC_NET_UNIX)
    inodes = parse_unix_listeners(text, path)
    if not inodes:
        return []
    found = (pid for pid in psutil.pids() if pid != 1 and not inodes.isdisjoint(open_sockets(pid)))
    return [pid for pid in found if in_our_pid_namespace(pid) and _is_of(pid, uid)]


def _is_of(pid: int, uid: int) -> bool:
    with suppress(psutil.Error):
        return bool(psutil.Process(pid).uids().real == uid)
    return False


def open_sockets(pid: int) -> Iterator[int]:
    """Yield the inode numbers of a process's open sockets; none where they may not be seen."""
    directory = b"%s/%d/fd" % (PROC, pid)
    with suppress(OSError):
        for name in os.listdir(directory):
            with suppress(OSError):
                target = os.readlink(directory + b"/" + name)
                if target.startswith(b"socket:["):
                    yield int(target[8:-1])


def dockerds(address: str, shim: int, *, seen_by: int | None = None, uid: int = 0) -> list[int]:
    """Return the processes of dockerd, outside of containers, that use this containerd.

    ``shim`` is one that it was given. ``seen_by`` is a process in the containerd's network
    namespace, if that is not ours; ``uid`` is the user, root or one with a rootless Docker, whose
    the dockerd must be.
    """
    namespace = b"self" if seen_by is None else b"%d" % seen_by
    containerds = _listeners(os.fsencode(address), namespace, uid=uid)
    found = []
    for pid in psutil.pids():
        with suppress(OSError, psutil.Error):
            if os.path.basename(executable(pid)) != b"dockerd" or not in_our_pid_namespace(pid):
                continue
            if not _is_of(pid, uid):
                continue
            given = flag_value(command_line(pid), "containerd") or _DEFAULT_ADDRESS
            is_parent = any(psutil.Process(each).ppid() == pid for each in containerds)
            if is_parent or given.removeprefix("unix://") == address:
                found.append(pid)
    return _nearest(found, shim)
