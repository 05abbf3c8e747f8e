"""What engines add to every container: mounts, mount points, and an init program.

Sources: Docker's daemon/initlayer/setup_unix.go and oci_linux.go; containerd's oci/mounts.go and
pkg/cri; Podman's libpod/container_internal_linux.go and pkg/specgen/generate.
"""

# ruff: noqa: S108 - these are names in a container; nothing is written there

from dataclasses import dataclass


@dataclass(frozen=True)
class EngineMount:
    """A mount that an engine makes by itself."""

    type: str
    destinations: tuple[str, ...]
    """Patterns (:mod:`cima_runc.verifier.pattern`)."""
    sources: tuple[str, ...] = ("**",)


_NAME_FILES = ("/etc/hosts", "/etc/hostname", "/etc/resolv.conf")
_DOCKER = "/var/lib/docker/containers/*"
_PODMAN = (
    "/var/lib/containers/storage/overlay-containers/*/userdata",
    "/run/containers/storage/overlay-containers/*/userdata",
)
_CRI = (
    "/var/lib/containerd/io.containerd.grpc.v1.cri/sandboxes/*",
    "/run/containerd/io.containerd.grpc.v1.cri/sandboxes/*",
)
_INITS = (
    "/usr/bin/docker-init",
    "/usr/sbin/docker-init",
    "/usr/local/bin/docker-init",
    "/usr/libexec/docker/docker-init",
)
_CATATONIT = (
    "/usr/bin/catatonit",
    "/usr/libexec/podman/catatonit",
    "/usr/libexec/catatonit/catatonit",
    "/usr/lib/podman/catatonit",
    "/usr/local/libexec/podman/catatonit",
)

INIT_PROGRAMS: dict[str, tuple[str, ...]] = {
    "/sbin/docker-init": _INITS,
    "/run/podman-init": _CATATONIT,
    "/dev/init": _CATATONIT,
}
"""Where an engine mounts its init program (``--init``), and from where on the host."""

MOUNTS: tuple[EngineMount, ...] = (
    EngineMount("proc", ("/proc",)),
    EngineMount("sysfs", ("/sys",)),
    EngineMount("cgroup", ("/sys/fs/cgroup",)),
    EngineMount("cgroup2", ("/sys/fs/cgroup",)),
    EngineMount("devpts", ("/dev/pts",)),
    EngineMount("mqueue", ("/dev/mqueue",)),
    EngineMount("tmpfs", ("/dev", "/dev/shm", "/run", "/run/lock", "/tmp", "/var/tmp")),
    EngineMount("bind", ("/etc/hosts",), (f"{_DOCKER}/hosts", *(f"{p}/hosts" for p in _PODMAN))),
    EngineMount("bind", ("/etc/hosts",), ("/var/lib/kubelet/pods/*/etc-hosts",)),
    EngineMount("bind", ("/etc/hostname",), (f"{_DOCKER}/hostname",)),
    EngineMount("bind", ("/etc/resolv.conf",), (f"{_DOCKER}/resolv.conf",)),
    EngineMount(
        "bind",
        (*_NAME_FILES, "/dev/shm", "/run/.containerenv", "/var/run/.containerenv"),
        tuple(f"{directory}/*" for directory in (*_PODMAN, *_CRI)),
    ),
    EngineMount("bind", ("/dev/shm",), (f"{_DOCKER}/mounts/shm", "/var/lib/containers/**/shm")),
    *(EngineMount("bind", (at,), sources) for at, sources in INIT_PROGRAMS.items()),
)
"""A ``tmpfs`` is empty when the container starts."""

DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty")
"""Devices that the runtime makes for every container (config-linux.md, default devices)."""

NAMESPACES = (
    "/run/netns/*",
    "/var/run/netns/*",
    "/run/docker/netns/*",
    "/var/run/docker/netns/*",
)
"""Where engines keep a container's network namespace, which they make before the container."""

DIRECTORIES = ("/dev", "/dev/pts", "/dev/shm", "/etc", "/proc", "/run", "/sbin", "/sys")
"""Directories that engines make in a container's own layer where the image has none."""

EMPTY_FILES = (
    "/.dockerenv",
    "/dev/console",
    "/run/.containerenv",
    *_NAME_FILES,
    *INIT_PROGRAMS,
)
"""Files without content that engines make there, mostly to mount others on."""

LINKS: dict[str, tuple[str, ...]] = {"/etc/mtab": ("/proc/mounts", "/proc/self/mounts")}
"""Symbolic links that engines make there."""
