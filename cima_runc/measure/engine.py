"""Which engine called, and where on this host it keeps what it mounts into every container.

The engine is known by the container's ancestors, which are measured as host services: a containerd
shim or a conmon. Where it keeps its things is read from what that process was given or has open,
or asked of the daemon behind it, never guessed from where a distribution puts it:

===========  ======================================================================================
Docker       dockerd's own answer (``GET /info``: DockerRootDir, userns-remap's directory with it);
             else its ``--data-root`` or daemon.json
containerd   the bundle is ``STATE/io.containerd.runtime.v2.task/NAMESPACE/ID``, and ``work`` in it
             leads to the same below ROOT: so too for k3s, microk8s, k0s, RKE2 and snaps
Podman       conmon is told ``--exit-command-arg --root`` and ``--runroot``
CRI-O        the bundle is ``RUNROOT/overlay-containers/ID/userdata``
kubelet      ``--root-dir``, and the socket ``ROOT/pod-resources/kubelet.sock`` that it listens on
===========  ======================================================================================

Who controls these paths is the subject of docs/adr/0092-mounts-that-engines-make.md.
Sources: containerd runtime/v2/bundle.go; moby daemon/daemon.go, cmd/dockerd/daemon.go
(containerd's namespace under userns-remap); Podman pkg/specgenutil (CreateExitCommandArgs);
kubelet pkg/kubelet/kubelet.go (getPodResourcesDir).
"""

import json
import os
import re
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from itertools import islice
from typing import Any

import psutil

from cima_runc.base import limits
from cima_runc.base.bounded import read_bounded
from cima_runc.base.errors import CimaError
from cima_runc.measure.command_line import command_line, environment
from cima_runc.measure.host_services import (
    DOCKER_NAMESPACE,
    PROC,
    ancestors_of,
    dockerds,
    executable,
    open_sockets,
    start_ticks,
)
from cima_runc.measure.outside import (
    has_our_root,
    in_mount_namespace_of,
    in_our_pid_namespace,
)
from cima_runc.measure.procfs import flag_value, flag_values, parse_unix_listening
from cima_runc.ml.contents import Engine

_ASK_SECONDS = 2.0
_LOOK_AGAIN_SECONDS = 60.0
_NEAREST = 3
"""The shim or conmon is the parent of the runtime, or of a runtime that called ours."""
_CONMON = b"conmon"
_CRI_NAMESPACE = "k8s.io"
_KUBELETS = frozenset({b"kubelet", b"kubelite", b"hyperkube", b"k3s", b"rke2"})
_DEFAULT_KUBELET = "/var/lib/kubelet"
_POD_RESOURCES = b"/pod-resources/kubelet.sock"
_TASK = re.compile(r"(/.+)/io\.containerd\.runtime\.v[12]\.(?:task|linux)/([^/]+)/([^/]+)")
_USERDATA = re.compile(r"(/.+)/[a-z0-9]+-containers/([^/]+)/userdata")
_OF_CONTAINER = re.compile(r"/(?:containers|[a-z0-9]+-containers)/([A-Za-z0-9_.-]+)(?:/.*)?")


class EngineFinder:
    """Finds engines and remembers what their daemons said. May be used by several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._docker: dict[tuple[int, int], str] = {}
        self._kubelets: tuple[_Kubelet, ...] = ()
        self._looked = 0.0

    def find(self, pid: int, bundle: str, config: Mapping[str, Any], uid: int = 0) -> Engine:
        """Return the engine that made the container with the first process ``pid``.

        ``uid``: whose container it is. Of a user's engine nothing is read but what the kernel shows
        of its processes: the files are the user's. Never raises: what is not known is not there,
        and then no mount is taken for the engine's.
        """
        try:
            with self._lock:
                found = self._find(pid, bundle, uid)
            return _with_mounts(found, pid, bundle, config, uid)
        except (CimaError, OSError, psutil.Error, ValueError):
            return Engine(name=None)

    def _find(self, pid: int, bundle: str, uid: int) -> Engine:
        caller = _caller(pid)
        if caller is None:
            return Engine(name=None)
        if os.path.basename(executable(caller)) == _CONMON:
            return self._behind_conmon(caller, bundle, uid)
        return self._behind_shim(caller, bundle, uid)

    def image_stores(self, pid: int) -> tuple[str, ...]:
        """Return the directories that Podman was told it has images in; () of other engines."""
        with suppress(CimaError, OSError, psutil.Error):
            caller = _caller(pid)
            if caller is not None and os.path.basename(executable(caller)) == _CONMON:
                return _image_stores(flag_values(command_line(caller), "exit-command-arg"))
        return ()

    def _behind_conmon(self, conmon: int, bundle: str, uid: int) -> Engine:
        argv = command_line(conmon)
        given = flag_values(argv, "exit-command-arg")
        match = _USERDATA.fullmatch(bundle)
        if given:
            roots = _spellings(flag_value(given, "root"), uid)
            states = _spellings(flag_value(given, "runroot"), uid)
            return Engine(name="podman", roots=roots, states=states)
        if match is None:
            return Engine(name=None)
        return Engine(
            name="cri-o",
            cri=True,
            states=_spellings(match[1], uid),
            kubelets=self._kubelet_roots(conmon),
        )

    def _behind_shim(self, shim: int, bundle: str, uid: int) -> Engine:
        argv = command_line(shim)
        namespace = flag_value(argv, "namespace") or ""
        task = _TASK.fullmatch(bundle)
        # The shim was started in a bundle of the same namespace: its own, or the pod's.
        beside = os.path.dirname(os.fsdecode(os.readlink(b"%s/%d/cwd" % (PROC, shim))))
        if task is None or task[2] != namespace or beside != os.path.dirname(bundle):
            return Engine(name=None)
        if namespace.partition("-")[0] == DOCKER_NAMESPACE:
            address = (flag_value(argv, "address") or "").removeprefix("unix://")
            found = dockerds(address, shim, seen_by=shim, uid=uid)
            for dockerd in (each for each in found if _is_hosts_own(each, shim)):
                root = self._docker_root(dockerd, namespace, uid)
                return Engine(name="docker", roots=_spellings(root, uid))
        cri = namespace == _CRI_NAMESPACE
        roots: tuple[str, ...] = ()
        if uid == 0:
            with suppress(OSError):
                work = _TASK.fullmatch(os.readlink(f"{bundle}/work"))
                if work is not None and work.groups()[1:] == task.groups()[1:]:
                    roots = _spellings(work[1])
        return Engine(
            name="containerd",
            cri=cri,
            roots=roots,
            states=_spellings(task[1], uid),
            kubelets=self._kubelet_roots(shim) if cri else (),
        )

    def _docker_root(self, dockerd: int, namespace: str, uid: int) -> str | None:
        key = (dockerd, start_ticks(dockerd))
        if key not in self._docker:
            root = (_ask_docker(dockerd) if uid == 0 else None) or _configured_root(
                dockerd, namespace, uid
            )
            if root is None:
                return None
            self._docker.clear()
            self._docker[key] = root
        return self._docker[key]

    def _kubelet_roots(self, engine: int) -> tuple[str, ...]:
        # A kubelet that has ended, or was not there yet, may run by now, and with another root.
        is_late = time.monotonic() - self._looked > _LOOK_AGAIN_SECONDS
        if is_late or not self._kubelets or not all(one.is_running() for one in self._kubelets):
            self._kubelets = tuple(_kubelets())
            self._looked = time.monotonic()
        own = [each for each in self._kubelets if _is_hosts_own(each.process.pid, engine)]
        roots = {root for found in own for root in _spellings(found.root)}
        return tuple(sorted(roots)) or _spellings(_DEFAULT_KUBELET)


# -- whose a process is ----------------------------------------------------------------------------


def _caller(pid: int) -> int | None:
    """Return the shim or conmon behind a container's first process."""
    for ancestor in islice(ancestors_of(pid), _NEAREST):
        if not in_our_pid_namespace(ancestor):
            break
        if _id_flags(os.path.basename(executable(ancestor))):
            return ancestor
    return None


def _is_hosts_own(pid: int, caller: int | None) -> bool:
    """Return whether a process is in no container, so that what it says of itself may count.

    A container may have the host's numbers of processes, its network and its root's, and then every
    name, argument and path of a socket. It does not see the file systems that the ``caller`` of the
    runtime sees. A service need not see them either: it has the host's root directory then, and no
    shim or conmon above it as all that is in a container has.
    """
    if not in_our_pid_namespace(pid):
        return False
    if caller is not None and in_mount_namespace_of(pid, caller):
        return True
    try:
        return has_our_root(pid) and not any(map(_is_caller, ancestors_of(pid)))
    except (CimaError, OSError):  # it has ended
        return False


def _is_caller(pid: int) -> bool:
    with suppress(OSError):  # process 1 of some hosts may not be looked at even by root
        return bool(_id_flags(os.path.basename(executable(pid))))
    return False


def _spellings(path: str | None, uid: int = 0) -> tuple[str, ...]:
    """Return a directory as it was named and, of root's, as it is without symbolic links."""
    if path is None or not path.startswith("/") or len(path) > limits.PATH:
        return ()
    named = "/" + os.path.normpath(path).strip("/")
    found = {named} if uid else {named, os.path.realpath(named)}
    return tuple(sorted(each for each in found if each != "/" and each.isprintable()))


def _image_stores(given: Sequence[str]) -> tuple[str, ...]:
    named = [*flag_values(given, "root"), *flag_values(given, "imagestore")]
    for option in flag_values(given, "storage-opt"):
        name, _, value = option.partition("=")
        if name.rpartition(".")[2] == "imagestore":
            named += value.split(",")
    return tuple(dict.fromkeys(each for each in named if each.startswith("/")))


# -- Docker ----------------------------------------------------------------------------------------


def _ask_docker(dockerd: int) -> str | None:
    root = docker_info(dockerd).get("DockerRootDir")
    return root if isinstance(root, str) and root.startswith("/") else None


def docker_info(dockerd: int, seconds: float = _ASK_SECONDS) -> dict[str, Any]:
    """Return what dockerd says of itself on a socket that it listens on (``GET /info``).

    Nothing where it says nothing in so many seconds; by default as few as a start can wait.

    Raises:
        OSError: there is no such process.
    """
    inodes = set(open_sockets(dockerd))
    text = read_bounded(b"%s/%d/net/unix" % (PROC, dockerd), limits.PROC_NET_UNIX)
    paths = sorted(
        (path for inode, path in parse_unix_listening(text) if inode in inodes),
        key=lambda path: (not path.endswith(b"docker.sock"), path),
    )
    for path in paths[:4]:
        with suppress(OSError, HTTPException, ValueError), socket.socket(socket.AF_UNIX) as channel:
            channel.settimeout(seconds)
            channel.connect(path)
            connection = HTTPConnection("localhost")
            connection.sock = channel
            connection.request("GET", "/info", headers={"Connection": "close"})
            raw = connection.getresponse().read(limits.ENGINE_ANSWER)
            told = json.loads(raw)
            if isinstance(told, dict):
                return told
    return {}


def _configured_root(dockerd: int, namespace: str, uid: int) -> str | None:
    """Return what dockerd was told by its arguments, environment or settings file."""
    argv = command_line(dockerd)
    root = flag_value(argv, "data-root") or flag_value(argv, "graph") or flag_value(argv, "g")
    if root is None and uid != 0:
        environ = environment(dockerd)
        home = environ.get("HOME")
        data = environ.get("XDG_DATA_HOME") or (f"{home}/.local/share" if home else None)
        root = f"{data}/docker" if data else None
    if root is None and uid == 0:
        root = "/var/lib/docker"
        path = flag_value(argv, "config-file") or "/etc/docker/daemon.json"
        with suppress(OSError, ValueError):
            raw = read_bounded(b"%s/%d/root%s" % (PROC, dockerd, os.fsencode(path)), limits.MIB)
            values = json.loads(raw.removeprefix(b"\xef\xbb\xbf"))
            root = values.get("data-root") or values.get("graph") or root
    remapped = namespace.removeprefix(DOCKER_NAMESPACE)
    if root is not None and remapped.startswith("-"):
        root = f"{root}/{remapped[1:]}"
    return root


# -- kubelet ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Kubelet:
    """A kubelet's root directory, and whose it is."""

    process: psutil.Process
    root: str

    def is_running(self) -> bool:
        """Whether it still runs; another process of the same number is not it."""
        running: bool = self.process.is_running()
        return running


def _kubelets() -> Iterator[_Kubelet]:
    """Yield what may be a kubelet, by its name or socket: of root's, in our pid namespace."""
    text = read_bounded(PROC + b"/net/unix", limits.PROC_NET_UNIX)
    listening = {
        inode: path.removesuffix(_POD_RESOURCES)
        for inode, path in parse_unix_listening(text)
        if path.endswith(_POD_RESOURCES)
    }
    for pid in psutil.pids():
        with suppress(OSError, psutil.Error, CimaError):
            name = os.path.basename(executable(pid))
            is_kubelet = name in _KUBELETS
            holds = listening.keys() & set(open_sockets(pid)) if listening else set()
            if not (is_kubelet or holds) or not _is_roots(pid):
                continue
            process = psutil.Process(pid)
            named = flag_value(command_line(pid), "root-dir") if is_kubelet else None
            roots = {os.fsdecode(listening[inode]) for inode in holds} | ({named} - {None})
            yield from (_Kubelet(process, root) for root in roots if root is not None)


def _is_roots(pid: int) -> bool:
    return in_our_pid_namespace(pid) and psutil.Process(pid).uids().real == 0


# -- mounts ----------------------------------------------------------------------------------------


def _with_mounts(
    engine: Engine, pid: int, bundle: str, config: Mapping[str, Any], uid: int
) -> Engine:
    """Add what the container's mounts, and its namespaces, have to do with the engine's."""
    directories = (*engine.roots, *engine.states, *engine.kubelets)
    if engine.name is None or not directories:
        return engine
    own = os.path.basename(bundle if engine.name in {"docker", "containerd"} else bundle[:-9])
    others: set[str] = set()
    redirected = set()
    for destination, source in _binds(config):
        inside = next((each for each in directories if source.startswith(each + "/")), None)
        if inside is None:
            continue
        match = _OF_CONTAINER.fullmatch(source[len(inside) :])
        if match is not None and match[1] != own:
            others.add(match[1])
        if uid == 0:
            expected = os.path.realpath(inside) + source[len(inside) :]
            if os.path.realpath(source) != expected:
                redirected.add(destination)
    shares = _sharing(pid, sorted(others)[: limits.LAYERS], uid) if others else ()
    return engine.model_copy(
        update={"shares": tuple(sorted(shares)), "redirected": tuple(sorted(redirected))}
    )


def _binds(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    mounts = config.get("mounts")
    for mount in mounts if isinstance(mounts, list) else []:
        if isinstance(mount, dict):
            destination, source = mount.get("destination"), mount.get("source")
            if isinstance(destination, str) and isinstance(source, str):
                yield destination, source


def _sharing(pid: int, ids: Sequence[str], uid: int) -> Iterable[str]:
    """Return which of the containers' first processes are in a namespace of ``pid``'s.

    A container's process is the child of its own shim or conmon, which was told its id.
    """
    own = _namespaces(pid) - _namespaces(1) - _namespaces(os.getpid())
    caller = _caller(pid)
    parents: dict[int, str] = {}
    children: list[tuple[int, int]] = []
    for process in psutil.process_iter():
        with suppress(OSError, psutil.Error, CimaError):
            children.append((process.pid, process.ppid()))
            name = os.path.basename(executable(process.pid))
            flags = _id_flags(name)
            if not flags or process.uids().real != uid or not _is_hosts_own(process.pid, caller):
                continue
            argv = command_line(process.pid)
            told = {value for flag in flags for value in flag_values(argv, flag)}
            for container in told.intersection(ids):
                parents[process.pid] = container
    return {
        parents[parent]
        for child, parent in children
        if parent in parents and child != pid and _namespaces(child) & own
    }


def _id_flags(name: bytes) -> tuple[str, ...]:
    if name == _CONMON:
        return ("c", "cid")
    return ("id",) if name.startswith(b"containerd-shim") else ()


def _namespaces(pid: int) -> set[tuple[str, int]]:
    found = set()
    for kind in ("net", "ipc", "uts"):
        with suppress(OSError):
            found.add((kind, os.stat(b"%s/%d/ns/%s" % (PROC, pid, kind.encode())).st_ino))
    return found
