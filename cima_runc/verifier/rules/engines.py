"""What engines add to every container: mounts, mount points, and an init program.

Sources: Docker's daemon/initlayer/setup_unix.go, oci_linux.go and container_unix.go; containerd's
oci/mounts.go and pkg/cri; Podman's libpod/container_internal_linux.go and pkg/specgen/generate;
CRI-O's server/sandbox_run_linux.go; kubelet's kubelet_pods.go and pkg/volume; nerdctl's
pkg/cmd/container/create.go and pkg/dnsutil/hostsstore. Who controls these paths:
docs/adr/0092-mounts-that-engines-make.md.
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
    """Patterns of what is bound there. Names in braces stand for what was measured of this
    container and its engine: :class:`cima_runc.verifier.rules.mounts.EngineMounts`."""
    engines: tuple[str, ...] = ()
    """The engines that make it; any, where none is named."""
    own_place: bool = False
    """Whether it counts only at a place that hides nothing and that no program looks at by itself:
    what is in it was chosen by whoever started the container."""
    chosen: bool = False
    """Whether the same holds of what is in it, which is at a place of its own in any case: there
    was something in it before, or others write there."""
    places: tuple[str, ...] = ()
    """Directories of data, beside those that count for all: it is an empty file, so that nothing
    but its name is chosen by somebody."""
    of_image: str = ""
    """What of the image is bound there: a path in the container, through no links."""
    refused: str = ""
    """Why it is not taken, though the engine makes it."""


NAME_FILES = ("/etc/hosts", "/etc/hostname", "/etc/resolv.conf")
"""Files of which whoever starts a container chooses what is in them (``--hostname``), and which all
containers of a pod may write."""
_SHM = "/dev/shm"
"""What is bound there is not the container's alone, but of all that are in its ipc namespace, or
may come into it."""
_USERDATA = ("{root}/*-containers/{id}/userdata", "{state}/*-containers/{id}/userdata")
_SANDBOX = (
    "{root}/io.containerd.grpc.v1.cri/sandboxes/{sandbox}",
    "{state}/io.containerd.grpc.v1.cri/sandboxes/{sandbox}",
)
_CRIO_SANDBOX = ("{state}/*-containers/{sandbox}/userdata",)
_CONTAINERENV = ("/run/.containerenv", "/var/run/.containerenv")
_POD = "{kubelet}/pods/{pod}"
_LOG = f"{_POD}/containers/{{container}}/*"
_OF_LOGS = ("/tmp", "/var/log", "/var/tmp")
_VOLUME = (
    "it is a volume, of the image's VOLUME or of who started it: what is in it is compared with"
    " nothing"
)
_TOKENS = (
    "/var/run/secrets/kubernetes.io/serviceaccount",
    "/run/secrets/kubernetes.io/serviceaccount",
)


def _in(directories: tuple[str, ...], *names: str) -> tuple[str, ...]:
    return tuple(f"{directory}/{name}" for directory in directories for name in names)


_INITS = (
    "/usr/bin/docker-init",
    "/usr/sbin/docker-init",
    "/usr/local/bin/docker-init",
    "/usr/libexec/docker/docker-init",
    *(f"/usr/{at}/docker-init" for at in ("lib/docker", "libexec", "local/libexec")),
    *(f"/usr/local/{at}/docker/docker-init" for at in ("lib", "libexec")),
    "/snap/docker/*/bin/docker-init",
    "/var/lib/snapd/snap/docker/*/bin/docker-init",
)
_CATATONIT = (
    "/usr/bin/catatonit",
    "/usr/libexec/podman/catatonit",
    "/usr/libexec/catatonit/catatonit",
    "/usr/lib/podman/catatonit",
    "/usr/local/lib/podman/catatonit",
    "/usr/local/libexec/podman/catatonit",
)

INIT_PROGRAMS: dict[str, tuple[str, ...]] = {
    "/sbin/docker-init": _INITS,
    "/run/podman-init": _CATATONIT,
    "/dev/init": _CATATONIT,
    "/sbin/tini": ("/usr/bin/tini", "/usr/local/bin/tini"),  # nerdctl's
}
"""Where an engine mounts its init program (``--init``), and patterns of where it is on the host."""

CRI = ("containerd", "cri-o")
"""The engines that Kubernetes has; the paths of a kubelet are known of those only."""

SETTING_HOME = ("podman",)
"""Engines that set ``HOME`` by themselves, from the image's ``/etc/passwd``; with others the
runtime does, where nobody else has."""

COPYING_IN = ("docker", "podman")
"""Engines through whose archive API Compose puts secrets and configs that it has from a variable or
from its own file into the container's own layer, before the start (docker/compose,
pkg/compose/secrets.go)."""

SECRETS = ("/run/secrets", "/var/run/secrets")
"""Where Compose puts secrets."""

ADDING_USERS = ("podman",)
"""Engines that add lines to ``/etc/passwd`` and ``/etc/group`` in the container's own layer
(:mod:`cima_runc.verifier.rules.added_users`)."""

LINKING_ZONES = ("podman", "cri-o")
"""Engines that link ``/etc/localtime`` to a time zone of the image's, in the container's own layer:
Podman's ``--tz`` and ``tz`` in containers.conf, CRI-O's ``timezone``. Where the image has no such
zone they mount a copy of the host's (containers/common, pkg/timezone)."""
ZONES = "/usr/share/zoneinfo"
LOCALTIME = "/etc/localtime"

HOST_USERS: dict[int, tuple[str, ...]] = {
    0: ("root:root", "root:Super User", "root"),
    65534: ("nobody:nobody", "nobody:Kernel Overflow User", "nobody:Nobody", "nobody"),
}
"""Users that every host has, by number: names and full names as Debian, Fedora, openSUSE, Alpine
and Arch have them. Podman calls a container's user so whom the image does not know."""

MOUNTS: tuple[EngineMount, ...] = (
    EngineMount("proc", ("/proc",)),
    EngineMount("sysfs", ("/sys",)),
    EngineMount("cgroup", ("/sys/fs/cgroup",)),
    EngineMount("cgroup2", ("/sys/fs/cgroup",)),
    EngineMount("devpts", ("/dev/pts",)),
    EngineMount("mqueue", ("/dev/mqueue",)),
    EngineMount("tmpfs", ("/dev", "/dev/shm", "/run", "/run/lock", "/tmp", "/var/tmp")),
    # Of a container that runs systemd (`podman run --systemd`).
    EngineMount("tmpfs", ("/var/log/journal", "/var/lib/journal")),
    *(
        EngineMount(
            "bind",
            (at,),
            (f"{{root}}/containers/{{id}}/{name}",),
            ("docker",),
            chosen=at == _SHM,
        )
        for at, name in (
            ("/etc/hosts", "hosts"),
            ("/etc/hostname", "hostname"),
            ("/etc/resolv.conf", "resolv.conf"),
            (_SHM, "mounts/shm"),
        )
    ),
    EngineMount(
        "bind", ("/**",), ("{root}/containers/{id}/mounts/secrets/*",), ("docker",), own_place=True
    ),
    *(
        EngineMount(
            "bind", destinations, _in(_USERDATA, name), ("podman",), chosen=destinations == (_SHM,)
        )
        for destinations, name in (
            (("/etc/hosts",), "hosts"),
            (("/etc/hostname",), "hostname"),
            (("/etc/resolv.conf",), "resolv.conf"),
            ((LOCALTIME,), "localtime"),  # LINKING_ZONES
            (_CONTAINERENV, ".containerenv"),
            ((_SHM,), "shm"),
        )
    ),
    # Where conmon listens for the container's word that it is ready (--sdnotify=container, the
    # default in a unit of Type=notify). What an earlier run wrote beside its socket is still there.
    EngineMount("bind", ("/run/notify",), _in(_USERDATA, "notify"), ("podman",), chosen=True),
    EngineMount("bind", ("/**",), _in(_USERDATA, "secrets/*"), ("podman",), own_place=True),
    # The directory that secrets are mounted into, with what the host's mounts.conf names.
    EngineMount(
        "bind",
        ("/run/secrets",),
        _in(_USERDATA, "run/secrets"),
        ("podman", "cri-o"),
        own_place=True,
    ),
    *(
        EngineMount("bind", (at,), _in(_SANDBOX, name), ("containerd",), chosen=at == _SHM)
        for at, name in (
            ("/etc/hosts", "hosts"),
            ("/etc/hostname", "hostname"),
            ("/etc/resolv.conf", "resolv.conf"),
            (_SHM, "shm"),
        )
    ),
    *(
        EngineMount(
            "bind",
            destinations,
            _in(_CRIO_SANDBOX, name),
            ("cri-o",),
            chosen=destinations == (_SHM,),
        )
        for destinations, name in (
            (("/etc/hosts",), "hosts"),
            (("/etc/hostname",), "hostname"),
            (("/etc/resolv.conf",), "resolv.conf"),
            (_CONTAINERENV, ".containerenv"),
            ((_SHM,), "shm"),
        )
    ),
    # The image's own, and a line for a user (runAsUser) that it does not know.
    *(
        EngineMount("bind", (f"/etc/{name}",), _in(_USERDATA[1:], name), ("cri-o",))
        for name in ("passwd", "group")
    ),
    EngineMount("bind", (LOCALTIME,), _in(_USERDATA[1:], "localtime"), ("cri-o",)),
    # nerdctl is no daemon, and its directory is not measured: that of root's is this one.
    EngineMount(
        "bind", ("/etc/hosts",), ("/var/lib/nerdctl/*/etchosts/*/{id}/hosts",), ("containerd",)
    ),
    *(
        EngineMount(
            "bind",
            (f"/etc/{name}",),
            (f"/var/lib/nerdctl/*/containers/*/{{id}}/{name}",),
            ("containerd",),
        )
        for name in ("hostname", "resolv.conf")
    ),
    EngineMount("bind", ("/etc/hosts",), (f"{_POD}/etc-hosts",), CRI),
    EngineMount("bind", ("/dev/termination-log",), (_LOG,), CRI),
    # A pod's terminationMessagePath elsewhere: kubelet makes a new, empty file at each start.
    EngineMount("bind", ("/**",), (_LOG,), CRI, own_place=True, places=_OF_LOGS),
    EngineMount(
        "bind",
        _TOKENS,
        (
            f"{_POD}/volumes/kubernetes.io~projected/kube-api-access-*",
            f"{_POD}/volumes/kubernetes.io~secret/*-token-*",
        ),
        CRI,
        chosen=True,  # a volume of the pod's own may have such a name
    ),
    EngineMount(
        "bind",
        ("/**",),
        tuple(
            f"{_POD}/volumes/kubernetes.io~{kind}/*"
            for kind in ("projected", "downward-api", "configmap", "secret")
        ),
        CRI,
        own_place=True,
    ),
    # On a host in FIPS mode, the image's own settings for it; and a file that says `FIPS`.
    *(
        EngineMount("bind", (at,), (f"{{rootfs}}{of}",), ("podman", "cri-o"), of_image=of)
        for at, of in (
            ("/etc/crypto-policies/back-ends", "/usr/share/crypto-policies/back-ends/FIPS"),
            ("/etc/crypto-policies/config", "/usr/share/crypto-policies/default-fips-config"),
        )
    ),
    EngineMount(
        "bind",
        ("/etc/crypto-policies/config",),
        _in(_USERDATA[1:], "fips-config"),
        ("podman", "cri-o"),
    ),
    # Of a container whose root is read-only, where its user is none of the image's.
    *(
        EngineMount(
            "bind",
            (f"/etc/{name}",),
            _in(_USERDATA, name),
            ("podman",),
            refused=f"whoever starts it may choose what is in it (--{name}-entry)",
        )
        for name in ("passwd", "group")
    ),
    EngineMount(
        "bind", ("/**",), ("{root}/volumes/*/_data",), ("docker", "podman"), refused=_VOLUME
    ),
    EngineMount(
        "bind",
        ("/**",),
        ("/var/lib/nerdctl/*/volumes/*/*/_data",),
        ("containerd",),
        refused=_VOLUME,
    ),
    EngineMount(
        "bind",
        ("/**",),
        (
            "{root}/io.containerd.grpc.v1.cri/containers/{id}/volumes/*",
            f"{_POD}/volumes/kubernetes.io~empty-dir/*",
            f"{_POD}/volume-subpaths/*/{{container}}/*",
        ),
        CRI,
        refused=_VOLUME,
    ),
    *(EngineMount("bind", (at,), sources) for at, sources in INIT_PROGRAMS.items()),
)
"""A ``tmpfs`` is empty when the container starts."""

_ANYWHERE = "/**"
_AT = {
    place: tuple(x for x in MOUNTS if not {place, _ANYWHERE}.isdisjoint(x.destinations))
    for each in MOUNTS
    for place in each.destinations
}
EMPTY = tuple(each for each in MOUNTS if each.type == "tmpfs")


def at(destination: str) -> tuple[EngineMount, ...]:
    """Return what engines may mount at a path."""
    return _AT.get(destination, _AT[_ANYWHERE])


DEVICES = {
    "/dev/null": "c 1:3",
    "/dev/zero": "c 1:5",
    "/dev/full": "c 1:7",
    "/dev/random": "c 1:8",
    "/dev/urandom": "c 1:9",
    "/dev/tty": "c 5:0",
}
"""Devices that the runtime makes for every container (config-linux.md, default devices), with the
numbers that they have: whoever starts a container chooses the path of another one there."""

DEVICE_RULES = frozenset({*DEVICES.values(), "c 5:1", "c 5:2", "c 136:*", "c 10:200"})
"""What engines and runtimes let every container use besides: console, ptmx, its terminals, and
(runc before 1.2) tun, which takes CAP_NET_ADMIN. Sources: Docker's oci/defaults.go, containerd's
oci.WithDefaultUnixDevices, runc's specconv.AllowedDevices."""

HOOK_STAGES_INSIDE = ("createContainer", "startContainer")
"""Stages whose hooks run in the container's mount namespace (config.md, POSIX-platform Hooks)."""

NAMESPACES = (
    "/run/netns/*",
    "/var/run/netns/*",
    "/run/docker/netns/*",
    "/var/run/docker/netns/*",
)
"""Where engines keep a container's network namespace, which they make before the container."""

HOST_NAMESPACES = ("/run/docker/netns/default", "/var/run/docker/netns/default")
"""Where Docker keeps the host's own network namespace, which older versions (20.10) join by it for
``--network host``; those that it makes have random names. Source: moby, daemon/oci_linux.go
(WithNamespaces), libnetwork/sandbox.go (GenerateKey)."""

DIRECTORIES = ("/dev", "/dev/pts", "/dev/shm", "/etc", "/proc", "/run", "/sbin", "/sys")
"""Directories that engines make in a container's own layer where the image has none."""

MADE_ANEW = ("/dev", "/dev/pts", "/dev/shm", "/etc", "/proc", "/sys")
"""Directories that Docker puts in its init layer in place of what the image has there, where that
is a symbolic link or a file (initlayer.Setup): Nix makes images whose ``/etc`` is a link."""

REPLACED_FILES = ("/.dockerenv", "/dev/console", *NAME_FILES)
"""Files without content that Docker puts there, whatever the image has (initlayer.Setup)."""

EMPTY_FILES = ("/run/.containerenv", "/dev/termination-log", *INIT_PROGRAMS)
"""The same that engines make to mount others on, where the image has nothing."""

LINKS: dict[str, tuple[str, ...]] = {"/etc/mtab": ("/proc/mounts", "/proc/self/mounts")}
"""Symbolic links that engines make there."""
