"""What matters of a measured OCI configuration, for people and for the rules of the appraisal.

Pure. The configuration is taken as it stands in the ``config`` record. A field that is not of the
type that the specification says counts as absent: no runtime starts such a container.
Source: OCI runtime specification, config.md and config-linux.md.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from cima_runc.measure.oci_config import env_pairs

_DEFAULT = """
AUDIT_WRITE CHOWN DAC_OVERRIDE FOWNER FSETID KILL MKNOD NET_BIND_SERVICE NET_RAW SETFCAP SETGID
SETPCAP SETUID SYS_CHROOT
"""
_REST = """
AUDIT_CONTROL AUDIT_READ BLOCK_SUSPEND DAC_READ_SEARCH IPC_LOCK IPC_OWNER LEASE LINUX_IMMUTABLE
MAC_ADMIN MAC_OVERRIDE NET_ADMIN NET_BROADCAST SYS_ADMIN SYS_BOOT SYS_MODULE SYS_NICE SYS_PACCT
SYS_PTRACE SYS_RAWIO SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG SYSLOG WAKE_ALARM
"""

DEFAULT_CAPABILITIES = frozenset(f"CAP_{name}" for name in _DEFAULT.split())
"""What Docker and containerd give every container; Podman gives no more than that."""

ALL_CAPABILITIES = DEFAULT_CAPABILITIES | {f"CAP_{name}" for name in _REST.split()}
"""All of Linux 3.16. Later ones (PERFMON, BPF, CHECKPOINT_RESTORE) are parts of CAP_SYS_ADMIN, and
not every runtime knows them. Source: include/uapi/linux/capability.h."""

NAMESPACES = ("cgroup", "ipc", "mount", "network", "pid", "user", "uts")
"""The types of namespaces that part a container from the host, as a configuration calls them."""

_RECORD_NAMES = {"mount": "mnt", "network": "net"}
"""Where ``register`` calls a type of namespace otherwise, as /proc/PID/ns does."""

INITIAL_NETWORK = 0xEFFFFFF9
"""Inode number of the host's network namespace, since Linux 6.18; as the agent writes it before."""

_INITIAL_NAMESPACES = {
    "ipc": 0xEFFFFFFF,
    "uts": 0xEFFFFFFE,
    "user": 0xEFFFFFFD,
    "pid": 0xEFFFFFFC,
    "cgroup": 0xEFFFFFFB,
    "network": INITIAL_NETWORK,
    "mount": 0xEFFFFFF8,
}
"""Inode numbers of the host's namespaces, the same on every host (include/linux/proc_ns.h; the
last two since Linux 6.18, include/uapi/linux/nsfs.h: before, they are any from 0xF0000000)."""


STEERING_ANNOTATIONS = frozenset(
    {
        "module.wasm.image/variant",
        "run.oci.handler",
        "run.oci.keep_original_groups",
        "run.oci.seccomp.plugins",
        "run.oci.seccomp.receiver",
        "run.oci.seccomp_bpf_data",
        "run.oci.systemd.force_cgroup_v1",
    }
)
"""Annotations by which crun does otherwise than the configuration says: it gives the container to
a virtual machine or an interpreter, in which nothing is seen, takes another filter of system calls,
lets it have its starter's groups or mounts something. Source: crun(1), "Extensions to OCI"."""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Capabilities(_Model):
    """The capability sets of the first process, sorted."""

    bounding: tuple[str, ...] = ()
    effective: tuple[str, ...] = ()
    inheritable: tuple[str, ...] = ()
    permitted: tuple[str, ...] = ()
    ambient: tuple[str, ...] = ()

    @property
    def beyond_default(self) -> tuple[str, ...]:
        """What is in any set and beyond :data:`DEFAULT_CAPABILITIES`."""
        sets = (self.bounding, self.effective, self.inheritable, self.permitted, self.ambient)
        return tuple(sorted(set().union(*sets) - DEFAULT_CAPABILITIES))


class User(_Model):
    """Who the first process is."""

    uid: int = 0
    gid: int = 0
    additional_gids: tuple[int, ...] = ()
    username: str = ""


class Namespace(_Model):
    """A namespace that the container was put into, which was there before."""

    type: str
    path: str


class Mount(_Model):
    """One mount."""

    destination: str
    source: str = ""
    type: str = ""
    options: tuple[str, ...] = ()
    from_host: bool = False
    """Whether a file or directory of the host is bound there."""

    @property
    def read_only(self) -> bool:
        """Whether the container cannot write there."""
        # runc gives recursive attributes after it has mounted: the last of them decides, and
        # without one the last plain flag (libcontainer/specconv, parseMountOptions).
        for writable, readable in (("rrw", "rro"), ("rw", "ro")):
            said = [option for option in self.options if option in (writable, readable)]
            if said:
                return said[-1] == readable
        return False

    @property
    def layers(self) -> tuple[str, ...]:
        """The directories that an overlay is made of, lower ones and upper one."""
        found: list[str] = []
        for option in self.options:
            name, equals, value = option.partition("=")
            if equals and name in _LAYERS:
                # Several of lowerdir stand between colons, two before those with data alone.
                found += re.split(r"(?<!\\):+", value) if name == "lowerdir" else [value]
        return tuple(one for one in found if one)


_LAYERS = frozenset({"lowerdir", "lowerdir+", "datadir+", "upperdir"})
"""Options of overlayfs that name directories with files (Documentation/filesystems/overlayfs.rst
of Linux)."""


class Device(_Model):
    """A device node in the container beyond those that every container has."""

    path: str
    type: str
    major: int | None = None
    minor: int | None = None


class DeviceRule(_Model):
    """Devices that the device controller lets the container read or write, by their numbers."""

    type: str
    """b, c, or a for both."""
    major: int | None = None
    """None: any."""
    minor: int | None = None

    def __str__(self) -> str:
        numbers = ("*" if number is None else str(number) for number in (self.major, self.minor))
        return f"{self.type} {':'.join(numbers)}"


class Seccomp(_Model):
    """The filter of system calls."""

    default_action: str
    rules: int
    """How many rules the filter has."""
    answers: tuple[Literal["notify", "pretend", "trace"], ...] = ()
    """How it answers calls in the kernel's place: ``notify`` asks a program outside, ``trace`` one
    that traces the task; ``pretend`` says that a call has succeeded which is not made."""


class Hook(_Model):
    """A program of the engine or of somebody else that runs beside the container; ours are out."""

    stage: str
    path: str
    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    """Names of its environment variables, in their order."""


class Resources(_Model):
    """Limits; None where there is none."""

    memory_bytes: int | None = None
    cpu_quota_us: int | None = None
    cpu_period_us: int | None = None
    cpu_shares: int | None = None
    cpus: str | None = None
    pids: int | None = None


NOT_SHOWN = frozenset({"hidden_env"})
"""What of a summary is compared, and not shown to people."""


class ConfigSummary(_Model):
    """What matters of one configuration."""

    args: tuple[str, ...] = ()
    cwd: str = ""
    terminal: bool = False
    user: User = User()
    env: tuple[str, ...] = ()
    """Names of the environment variables, in their order."""
    hidden_env: tuple[tuple[str, str], ...] = ()
    """The same with what stands for their values (see :func:`~.oci_config.hidden_value`): to be
    compared, not shown."""
    capabilities: Capabilities = Capabilities()
    host_namespaces: tuple[str, ...] = ()
    """Types of the namespaces that are the host's own."""
    joined_namespaces: tuple[Namespace, ...] = ()
    """Namespaces that others made; one of these may be the host's, or another container's."""
    id_maps: bool = False
    """Whether users of the container are others on the host."""
    root: str = ""
    read_only_root: bool = False
    mounts: tuple[Mount, ...] = ()
    seccomp: Seccomp | None = None
    devices: tuple[Device, ...] = ()
    all_devices: bool = False
    """Whether the container may use every device of the host. Where no rule says which, that is so
    with crun (cgroup-resources.c, update_cgroup_v2_resources); runc lets it use the usual ones."""
    device_rules: tuple[DeviceRule, ...] = ()
    """Devices that it may read or write where it has or makes a node of them, but for a rule of all
    (:attr:`all_devices`)."""
    masked_paths: tuple[str, ...] = ()
    masked_relative: tuple[str, ...] = ()
    """Paths to be masked that are not absolute, which runtimes may take from the root."""
    read_only_paths: tuple[str, ...] = ()
    no_new_privileges: bool = False
    apparmor: str = ""
    selinux: str = ""
    sysctl: tuple[tuple[str, str], ...] = ()
    hooks: tuple[Hook, ...] = ()
    resources: Resources = Resources()
    kubernetes: tuple[tuple[str, str], ...] = ()
    """Annotations of Kubernetes, by which engines name the pod."""
    steering: tuple[tuple[str, str], ...] = ()
    """Those of :data:`STEERING_ANNOTATIONS` that it has."""
    misspelt: tuple[str, ...] = ()
    """Keys that differ in upper and lower case only from ones that are summed up here, or in what
    follows a NUL: some runtimes read them all the same, so what is said here may not be what
    holds."""

    @property
    def privileged(self) -> bool:
        """Whether the container is one in name only, as with ``--privileged``.

        That is: all capabilities, no seccomp filter, and every device or nothing masked.
        """
        all_capabilities = ALL_CAPABILITIES.issubset(self.capabilities.bounding)
        unconfined = self.all_devices or not self.masked_paths
        return all_capabilities and self.seccomp is None and unconfined


def summarize(
    config: Mapping[str, Any], namespaces: Mapping[str, Any] | None = None
) -> ConfigSummary:
    """Return what matters of ``config``, the object in the ``config`` record.

    ``namespaces``: those of the ``register`` record (inode numbers by type), which show a namespace
    of the host's that was joined by its path.
    """
    process, linux = _object(config, "process"), _object(config, "linux")
    own, joined = _namespaces(linux)
    host = {name for name in NAMESPACES if name not in own}
    host |= _initial(namespaces or {})
    resources = _object(linux, "resources")
    return ConfigSummary(
        args=_strings(process, "args"),
        cwd=_string(process, "cwd"),
        terminal=process.get("terminal") is True,
        user=_user(_object(process, "user")),
        env=_env(process),
        hidden_env=tuple(env_pairs(_strings(process, "env"))),
        capabilities=_capabilities(_object(process, "capabilities")),
        host_namespaces=tuple(name for name in NAMESPACES if name in host),
        joined_namespaces=tuple(joined),
        id_maps=bool(_objects(linux, "uidMappings")),
        root=_string(_object(config, "root"), "path"),
        read_only_root=_object(config, "root").get("readonly") is True,
        mounts=tuple(_mount(mount) for mount in _objects(config, "mounts")),
        seccomp=_seccomp(linux.get("seccomp")),
        devices=tuple(_device(device) for device in _objects(linux, "devices")),
        all_devices=_all_devices(resources)
        or (not _objects(resources, "devices") and _is_of_hosts_users(own, namespaces or {})),
        device_rules=tuple(_device_rules(resources)),
        masked_paths=_paths(linux, "maskedPaths"),
        masked_relative=tuple(
            path for path in _strings(linux, "maskedPaths") if path and not path.startswith("/")
        ),
        read_only_paths=_paths(linux, "readonlyPaths"),
        no_new_privileges=process.get("noNewPrivileges") is True,
        apparmor=_string(process, "apparmorProfile"),
        selinux=_string(process, "selinuxLabel"),
        sysctl=tuple(sorted((key, str(value)) for key, value in _object(linux, "sysctl").items())),
        hooks=tuple(_hooks(_object(config, "hooks"))),
        resources=_resources(resources),
        kubernetes=_annotations(config, lambda key: key.startswith("io.kubernetes.")),
        steering=_annotations(config, STEERING_ANNOTATIONS.__contains__),
        misspelt=tuple(sorted(_misspelt(config))),
    )


def _annotations(
    config: Mapping[str, Any], wanted: Callable[[str], bool]
) -> tuple[tuple[str, str], ...]:
    found = _object(config, "annotations").items()
    return tuple(sorted((k, v) for k, v in found if wanted(k) and isinstance(v, str)))


_KNOWN = """
process args cwd terminal user uid gid additionalGids username env capabilities bounding effective
inheritable permitted ambient noNewPrivileges apparmorProfile selinuxLabel root path readonly mounts
destination source type options hooks linux namespaces uidMappings seccomp defaultAction syscalls
devices major minor allow access resources memory limit cpu quota period shares cpus pids sysctl
maskedPaths readonlyPaths prestart createRuntime createContainer startContainer poststart poststop
action annotations defaultErrnoRet errnoRet
"""
_KEYS = {key.casefold(): key for key in _KNOWN.split()}
_FREE_KEYS = frozenset({"annotations", "sysctl"})
"""Objects whose keys are no part of the specification."""


def _misspelt(value: object) -> set[str]:
    found = set()
    level = [value]
    while level:
        below: list[object] = []
        for item in level:
            if isinstance(item, dict):
                found |= {key for key in item if _KEYS.get(_as_read(key), key) != key}
                below.extend(inner for key, inner in item.items() if key not in _FREE_KEYS)
            elif isinstance(item, list):
                below.extend(item)
        level = below
    return found


def _as_read(key: str) -> str:
    """Return a key as the laxer runtimes read it: runc in any case, crun up to a NUL."""
    return key.partition("\0")[0].casefold()


def _namespaces(linux: Mapping[str, Any]) -> tuple[set[str], list[Namespace]]:
    """Return the types that are not simply the runtime's, and those joined by a path."""
    own, joined = set(), []
    for entry in _objects(linux, "namespaces"):
        kind, path = _string(entry, "type"), _string(entry, "path")
        own.add(kind)
        if path:
            joined.append(Namespace(type=kind, path=path))
    return own, joined


def _initial(namespaces: Mapping[str, Any]) -> set[str]:
    return {
        name
        for name, number in _INITIAL_NAMESPACES.items()
        if namespaces.get(_RECORD_NAMES.get(name, name)) == number
    }


def _is_of_hosts_users(own: set[str], namespaces: Mapping[str, Any]) -> bool:
    """Whether its root is the host's, by whom nodes of devices are made: in a user namespace, where
    Podman writes no rules for them, the kernel lets nobody make one."""
    number = namespaces.get("user")
    return "user" not in own if number is None else number == _INITIAL_NAMESPACES["user"]


def _user(user: Mapping[str, Any]) -> User:
    gids = user.get("additionalGids")
    return User(
        uid=_number(user, "uid") or 0,
        gid=_number(user, "gid") or 0,
        additional_gids=tuple(gid for gid in map(_integer, _list(gids)) if gid is not None),
        username=_string(user, "username"),
    )


def _capabilities(sets: Mapping[str, Any]) -> Capabilities:
    return Capabilities(
        **{name: tuple(sorted(_strings(sets, name))) for name in Capabilities.model_fields}
    )


def _mount(mount: Mapping[str, Any]) -> Mount:
    destination, source = _string(mount, "destination"), _string(mount, "source")
    options = _strings(mount, "options")
    bound = _string(mount, "type") == "bind" or not {"bind", "rbind"}.isdisjoint(options)
    return Mount(
        destination=destination,
        source=source,
        type=_string(mount, "type"),
        options=options,
        from_host=bound,
    )


def _device(device: Mapping[str, Any]) -> Device:
    return Device(
        path=_string(device, "path"),
        type=_string(device, "type"),
        major=_number(device, "major"),
        minor=_number(device, "minor"),
    )


def _seccomp(seccomp: object) -> Seccomp | None:
    if not isinstance(seccomp, dict):
        return None
    rules = _objects(seccomp, "syscalls")
    action = _string(seccomp, "defaultAction")
    # A filter that lets everything through is none, whether or not it logs.
    if {action, *(_string(rule, "action") for rule in rules)} <= _LETTING_THROUGH:
        return None
    said = [(rule, "action", "errnoRet") for rule in rules]
    said.append((seccomp, "defaultAction", "defaultErrnoRet"))
    answers: set[Literal["notify", "pretend", "trace"]] = set()
    for holder, key, errno in said:
        found, number = _string(holder, key), _number(holder, errno)
        if found == "SCMP_ACT_NOTIFY":
            answers.add("notify")
        elif found == "SCMP_ACT_TRACE":
            answers.add("trace")
        elif found == "SCMP_ACT_ERRNO" and number is not None and not number & _ERRNO:
            answers.add("pretend")
    return Seccomp(default_action=action, rules=len(rules), answers=tuple(sorted(answers)))


_ERRNO = 0xFFFF
"""What the kernel takes of an error number (SECCOMP_RET_DATA, include/uapi/linux/seccomp.h); 0 is
success."""


_LETTING_THROUGH = frozenset({"SCMP_ACT_ALLOW", "SCMP_ACT_LOG"})


def _all_devices(resources: Mapping[str, Any]) -> bool:
    """Whether the rules for devices, the later ones over the earlier ones, end in all allowed.

    That is: all block or all character devices may be read or written. That nodes of all devices
    may be made (access m) is in every engine's default.
    """
    allowed: dict[str, set[str]] = {"b": set(), "c": set()}
    for rule in _objects(resources, "devices"):
        is_all, allow = _string(rule, "type") in {"", "a"}, rule.get("allow") is True
        # What allows devices of both kinds allows all of them, to read and write, in control
        # groups of version 1, and in runc everywhere (devices_emulator.go, Apply).
        whatever = is_all and allow
        numbers = (_device_number(rule, key) for key in ("major", "minor"))
        if not whatever and any(number is not None for number in numbers):
            continue
        for kind in allowed if is_all else {_string(rule, "type")} & allowed.keys():
            access = set("rwm" if whatever else _string(rule, "access") or "rwm")
            allowed[kind] |= access
            if not allow:
                allowed[kind] -= access
    return any({"r", "w"} & access for access in allowed.values())


def _device_rules(resources: Mapping[str, Any]) -> list[DeviceRule]:
    """Return the rules that let some devices be read or written, since all were denied."""
    found: list[DeviceRule] = []
    for rule in _objects(resources, "devices"):
        major, minor = (_device_number(rule, key) for key in ("major", "minor"))
        kind = _string(rule, "type") or "a"
        used = {"r", "w"} & set(_string(rule, "access") or "rwm")
        if rule.get("allow") is True:
            if used and (major, minor) != (None, None):
                found.append(DeviceRule(type=kind, major=major, minor=minor))
        elif kind == "a" and (major, minor) == (None, None) and used == {"r", "w"}:
            found.clear()
    return list(dict.fromkeys(found))


def _device_number(rule: Mapping[str, Any], key: str) -> int | None:
    number = _number(rule, key)
    return number if number is not None and number >= 0 else None


def _hooks(hooks: Mapping[str, Any]) -> list[Hook]:
    return [
        Hook(
            stage=stage,
            path=_string(entry, "path"),
            args=_strings(entry, "args"),
            env=_env(entry),
        )
        for stage in hooks
        for entry in _objects(hooks, stage)
    ]


def _env(holder: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(item.partition("=")[0] for item in _strings(holder, "env"))


def _resources(resources: Mapping[str, Any]) -> Resources:
    cpu = _object(resources, "cpu")
    return Resources(
        memory_bytes=_limit(_object(resources, "memory"), "limit"),
        cpu_quota_us=_limit(cpu, "quota"),
        cpu_period_us=_limit(cpu, "period"),
        cpu_shares=_limit(cpu, "shares"),
        cpus=_string(cpu, "cpus") or None,
        pids=_limit(_object(resources, "pids"), "limit"),
    )


def _object(holder: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = holder.get(key)
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _objects(holder: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    return [item for item in _list(holder.get(key)) if isinstance(item, dict)]


def _strings(holder: Mapping[str, Any], key: str) -> tuple[str, ...]:
    # null, and whatever else is no text, is an empty one to the runtimes that take it.
    return tuple(item if isinstance(item, str) else "" for item in _list(holder.get(key)))


def _paths(holder: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """Return a list's paths; what is no absolute one hides nothing."""
    return tuple(path for path in _strings(holder, key) if path.startswith("/"))


def _string(holder: Mapping[str, Any], key: str) -> str:
    value = holder.get(key)
    return value if isinstance(value, str) else ""


def _number(holder: Mapping[str, Any], key: str) -> int | None:
    return _integer(holder.get(key))


def _integer(value: object) -> int | None:
    """Return an integer, also one beyond 2^53 - 1, which is measured as its decimal string."""
    if isinstance(value, str) and _DECIMAL.fullmatch(value):
        return int(value)
    return value if type(value) is int else None


_DECIMAL = re.compile(r"-?[0-9]{1,20}", re.ASCII)


def _limit(holder: Mapping[str, Any], key: str) -> int | None:
    # What is beyond 2^53 - 1 limits nothing.
    value = holder.get(key)
    return value if type(value) is int and value > 0 else None
