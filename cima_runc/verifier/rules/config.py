"""The OCI configuration: nothing that reaches out of the container, and the image's own command."""

import posixpath
import re
from collections import defaultdict
from collections.abc import Collection, Iterator
from functools import cached_property, partial
from itertools import islice

from cima_runc.base.text import printable
from cima_runc.measure.config_summary import (
    ALL_CAPABILITIES,
    ConfigSummary,
    Device,
    DeviceRule,
    Hook,
    Mount,
)
from cima_runc.measure.oci_config import hidden_value
from cima_runc.verifier.pattern import exactly, matches
from cima_runc.verifier.policy import DYNAMIC_MAJORS, AllowedDevice, ConfigPolicy, covers
from cima_runc.verifier.reference.file import ReferenceConfig
from cima_runc.verifier.result import Finding, brief
from cima_runc.verifier.rules import engines
from cima_runc.verifier.rules.below import Below
from cima_runc.verifier.rules.image_files import ImageFiles, path_bytes
from cima_runc.verifier.rules.loading import HARMLESS, makes_load
from cima_runc.verifier.rules.mounts import (
    EngineMounts,
    Places,
    allows,
    is_engines_init,
    kind,
    matches_any,
    stays,
)
from cima_runc.verifier.toml import array, quoted

AS_ROOT = frozenset(
    {
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_FOWNER",
        "CAP_SETFCAP",
        "CAP_SETGID",
        "CAP_SETUID",
    }
)
"""Of the capabilities that engines give every container, those by which a user becomes root, or
does with root's files as root does (capabilities(7))."""

ALL_DEVICES = "a *:*"
"""The rule by which a container may use every device."""

KERNEL_SETTINGS = ("bus", "fs", "irq", "sys", "sysrq-trigger")
"""The kernel's own settings in proc, which every engine has read-only. Their files that are the
host's may be written by the host's root, which a container's is, with no capability at all:
``sys/kernel/core_pattern`` is a program that the kernel starts on the host, for whatever crashes
there; ``sysrq-trigger`` ends the host's processes. So are ``kernel/uevent_helper`` of sysfs, and
what its devices have in their registers."""


_SETTINGS = 10
"""How many of them are named: proc may be mounted any number of times."""
_KEYS = 1_000
"""Mounts of one container that are refused and for which the reason and the policy's key are made
up: more findings are not kept, and each is compared with all that its engine has."""
_ANSWERS = {
    "notify": "a program of the host's answers some (SCMP_ACT_NOTIFY)",
    "pretend": "some are said to have succeeded, and are not done (errnoRet 0)",
    "trace": "whoever traces it answers some (SCMP_ACT_TRACE)",
}


class ConfigRule:
    """Judges one ``config`` record."""

    def __init__(
        self,
        config: ConfigSummary,
        image: ReferenceConfig,
        policy: ConfigPolicy,
        record: int,
        *,
        mounts: EngineMounts | None = None,
        files: ImageFiles | None = None,
        groups: frozenset[int] = frozenset(),
        secret: bytes | None = None,
    ) -> None:
        """``mounts``: those that this container's engine makes; None as for version 1. ``files``:
        the image's. ``groups``: those that the engine has put the image's user into. ``secret`` is
        what the environment's values are hidden with; None where nobody told it."""
        self._config = config
        self._engine = mounts or EngineMounts({}, config)
        self._image = image
        self._files = files
        self._groups_added = groups
        self._policy = policy
        self._secret = secret
        self._record = record
        self._finding = partial(Finding.unless, record=record)

    def check(self) -> Iterator[Finding]:
        """Yield what is wrong."""
        if self._config.misspelt:
            yield self._finding(
                False,
                "config.misspelt",
                "keys are spelt so that runtimes may read them otherwise than we do",
                path=", ".join(map(printable, self._config.misspelt)),
                got=", ".join(map(printable, self._config.misspelt)),
                expected="the specification's spelling",
                next_="find out what wrote config.json",
            )
        yield from self._privileged()
        yield from self._kernel_settings()
        yield from self._namespaces()
        yield from self._capabilities()
        yield from self._mounts()
        yield from self._devices()
        yield from self._process()
        yield from self._groups()
        yield from self._env()
        yield from self._hooks()
        yield from self._annotations()
        yield from self._hidden()
        yield from self._seccomp()

    def _annotations(self) -> Iterator[Finding]:
        for name, value in self._config.steering:
            if {name, steered(name, value)} & set(self._policy.annotations):
                continue
            yield self._finding(
                False,
                "config.annotation",
                f"by the annotation {name} crun runs it otherwise than its configuration says",
                path="annotations",
                got=f"{name}={printable(value)}",
                expected="no such annotation",
                next_=f"start it without; [config] annotations = {array([steered(name, value)])}"
                " in the policy",
            )

    # -- what reaches out -------------------------------------------------------------------------

    def _privileged(self) -> Iterator[Finding]:
        config, policy = self._config, self._policy
        reasons, allowed = [], []
        if config.all_devices:
            reasons.append("it may use all devices")
            allowed.append(any(covers(each, ALL_DEVICES) for each in policy.device_rules))
        if not config.masked_paths:
            reasons.append("no part of /proc and /sys is hidden from it")
            allowed.append(policy.allow_unmasked)
        if not reasons:
            return
        if config.seccomp is None:
            reasons.append("no seccomp filter")
        reasons.append(f"{len(capability_names(self._config))} capabilities")
        yield self._finding(
            policy.allow_privileged or all(allowed),
            "config.privileged",
            "the container is privileged",
            path="linux.resources.devices, linux.maskedPaths",
            got=", ".join(reasons),
            expected="not privileged",
            next_="start it without --privileged; in the policy: [config] "
            + ", ".join(privilege_keys(config)),
        )

    def _kernel_settings(self) -> Iterator[Finding]:
        if not self._config.masked_paths:
            return  # said already
        allowed = self._policy.allow_unmasked or self._policy.allow_privileged
        next_ = "; allow_unmasked = true under [config] in the policy"
        if paths := list(map(printable, writable_settings(self._config))):
            yield self._finding(
                allowed,
                "config.kernel_settings",
                "as the host's root it may set what the kernel does, and starts, on the host",
                path="linux.readonlyPaths",
                got=f"{', '.join(paths)}: writable",
                expected="read-only",
                next_=f"put {array(paths)} into linux.readonlyPaths, as engines do{next_}",
            )
        for mount in writable_sysfs(self._config):
            yield self._finding(
                allowed,
                "config.kernel_settings",
                "as the host's root it may set what the kernel starts on the host, and devices",
                path=printable(mount.destination),
                got=f"{printable(mount.destination)} (sysfs, writable)",
                expected="read-only",
                next_=f"mount it with the option ro, as engines do{next_}",
            )

    def _namespaces(self) -> Iterator[Finding]:
        joined = {each.type: each.path for each in self._config.joined_namespaces}
        host = shared_with_host(self._config)
        for name, got in host.items():
            if name in self._policy.host_namespaces:
                continue
            yield self._finding(
                False,
                "config.namespace",
                f"it shares the host's {printable(name)} namespace",
                path="linux.namespaces",
                got=printable(got),
                expected="its own",
                next_=f"start it without; '{name}' in [config] host_namespaces of the policy",
            )
        for name, path in joined.items():
            if name in host or (name == "network" and matches_any(engines.NAMESPACES, path)):
                continue
            # Who else is in that of its mounts decides what is at every path, at any time.
            yield self._finding(
                name != "mount" or name in self._policy.host_namespaces,
                "config.joined",
                f"it shares a {printable(name)} namespace with others",
                path="linux.namespaces",
                got=printable(path),
                expected="its own",
                next_="start it without; 'mount' in [config] host_namespaces of the policy",
            )

    def _capabilities(self) -> Iterator[Finding]:
        more = sorted(capability_names(self._config) - set(self._policy.capabilities))
        if more:
            yield self._finding(
                self._policy.allow_privileged,
                "config.capabilities",
                f"it has {len(more)} capabilities that the policy does not allow",
                path="process.capabilities",
                got=", ".join(map(printable, more)),
                expected=f"at most the {len(self._policy.capabilities)} of the policy",
                next_="start it without --cap-add; capabilities under [config] in the policy",
            )

        # What another user has in its sets is lost when it executes, but for the ambient ones.
        wanted = self._image.user_number or self._image.user or "0"
        if not self._config.user.uid or _number(wanted.partition(":")[0] or "0") == "0":
            return
        if ambient := sorted(as_root(self._config) - set(self._policy.ambient)):
            yield self._finding(
                self._policy.allow_privileged,
                "config.ambient",
                "its user, who is not root in the image, may do as root does",
                path="process.capabilities.ambient",
                got=", ".join(map(printable, ambient)),
                expected="none of these",
                next_="start it without --cap-add; in the policy: [config] ambient ="
                f" {array(ambient)}",
            )

    def _mounts(self) -> Iterator[Finding]:
        refused = 0
        for mount in self._config.mounts:
            by = next((x for x in self._policy.mounts if allows(x, mount, self._files)), None)
            if by is None and self._engine.makes(mount):
                continue
            source = f" of {mount.source}" if mount.from_host else f" ({mount.type})"
            access = "read-only" if mount.read_only else "writable"
            at, from_ = printable(mount.destination), printable(source)
            if by is not None:
                yield Finding(
                    severity="info",
                    rule="config.mount",
                    what=f"the mount {at}{from_}: allowed by the policy's {by.destination}",
                    record=self._record,
                    path=at,
                )
                continue
            refused += 1
            key, why = "...", ""
            if refused <= _KEYS:
                key, why = self._engine.allowing(mount), self._engine.objection(mount)
            yield self._finding(
                False,
                "config.mount",
                f"the mount {at}{from_} is not allowed" + (f": {why}" if why else ""),
                path=at,
                got=f"{printable(mount.source)} ({printable(kind(mount))}, {access})",
                expected="only mounts that engines make",
                next_=f"start it without; in the policy: [config] mounts = [{key}]",
            )

    def _devices(self) -> Iterator[Finding]:
        if self._config.all_devices:
            return  # said already
        for device in self._config.devices:
            path, number = printable(device.path), device_number(device)
            if engines.DEVICES.get(device.path) == number:
                continue
            if any(_is_allowed(each, device) for each in self._policy.devices):
                continue
            yield self._finding(
                False,
                "config.device",
                f"the device {path} is not allowed",
                path=path,
                got=printable(number),
                expected=engines.DEVICES.get(device.path, "only what every container has"),
                next_=f"start it without --device; in the policy: "
                f"[config] devices = [{device_key(device)}]",
            )
        for rule in device_rules_beyond(self._config):
            number = printable(str(rule))
            if any(covers(each, str(rule)) for each in self._policy.device_rules):
                continue
            yield self._finding(
                False,
                "config.device",
                f"it may use the devices {number}, of which it can make nodes",
                path="linux.resources.devices",
                got=number,
                expected="only what every container has",
                next_="start it without --device-cgroup-rule; in the policy:"
                f" [config] device_rules = {array([str(rule)])}",
            )

    # -- what is done to it -----------------------------------------------------------------------

    def _hidden(self) -> Iterator[Finding]:
        # An empty file or directory lies there instead, as if the image had it so.
        for path in masked_beyond(self._config):
            if any(_may_be_masked(x, path, self._files) for x in self._policy.masked_paths):
                continue
            shown = printable(path)
            yield self._finding(
                False,
                "config.masked",
                f"what the image has at {shown} is hidden from it",
                path="linux.maskedPaths",
                got=shown,
                expected="parts of /proc and /sys",
                next_="start it without; in the policy: [config] masked_paths ="
                f" [{quoted(exactly(path))}]",
            )

    def _seccomp(self) -> Iterator[Finding]:
        seccomp = self._config.seccomp
        if seccomp is None:
            yield self._finding(
                not self._policy.require_seccomp,
                "config.seccomp",
                "it has no seccomp filter",
                next_="start it with the engine's default profile",
            )
        elif seccomp.answers:
            # Refusing ends no differently than a right that it does not have; these do.
            yield self._finding(
                self._policy.allow_seccomp_answers,
                "config.seccomp",
                "its seccomp filter answers system calls in the kernel's place",
                path="linux.seccomp",
                got=", ".join(_ANSWERS[each] for each in seccomp.answers),
                expected="calls are let through or refused",
                next_="start it with the engine's default profile; allow_seccomp_answers = true"
                " under [config] in the policy",
            )

    # -- what runs --------------------------------------------------------------------------------

    def _process(self) -> Iterator[Finding]:
        config, image, policy = self._config, self._image, self._policy
        own = image.command
        args = command_of(config)
        if args not in {own, *policy.args} and not policy.allow_any_args:
            yield self._finding(
                False,
                "config.args",
                "it was started with another command than the image's",
                path="process.args",
                got=_shell(args),
                expected=_shell(own) if own else "none: the image names no command",
                next_=f"[config] args in the policy: {array(args)}",
            )
        wanted = image.user_number or image.user or "0"
        got = f"{config.user.uid}:{config.user.gid}"
        if not (_is_user(wanted, config) or any(_is_user(each, config) for each in policy.users)):
            is_name = not wanted.partition(":")[0].isdecimal()
            what = "it runs as another user than the image's"
            if is_name and config.user.uid:
                what = f"the image's user {printable(wanted)} is a name, which is not compared"
            yield self._finding(
                False,
                "config.user",
                what,
                path="process.user",
                got=got,
                expected=printable(wanted),
                next_=f"[config] users = ['{got}'] in the policy",
            )
        directory = _directory(image.working_dir)
        if not any(map(self._starts_in, (image.working_dir, *policy.working_dirs))):
            yield self._finding(
                False,
                "config.cwd",
                "it starts in another directory than the image's",
                path="process.cwd",
                got=printable(config.cwd),
                expected=printable(directory),
                next_="[config] working_dirs in the policy",
            )

    def _starts_in(self, wanted: str) -> bool:
        """Whether it starts in a directory, also where it goes up by ``..`` after a link."""
        cwd = self._config.cwd
        if _directory(cwd) != _directory(wanted):
            return False
        if ".." not in cwd.split("/") or self._files is None or cwd == wanted:
            return True
        places = map(self._files.place, (cwd, _directory(wanted)))
        return len(set(places)) == 1

    def _groups(self) -> Iterator[Finding]:
        """Yield the groups by which it may do more with the image's own files, or less.

        Engines add those that the image gives its user, and a pod those of its volumes. What lies
        in mounts and devices is judged with these; a group that none of the image's files knows
        changes nothing else.
        """
        user, known = self._config.user, self._image.user_groups
        if known is None:
            if user.additional_gids and set(user.additional_gids) != {user.gid}:
                yield Finding(
                    severity="info",
                    rule="config.groups",
                    what="its groups are not compared: the reference values do not say which its"
                    " user has",
                    record=self._record,
                    path="process.user.additionalGids",
                    got=", ".join(map(str, user.additional_gids)),
                )
            return
        own = known.get(str(user.uid), (0,))
        wanted = self._image.user_number or self._image.user or "0"
        # What the image, or the policy, says of the first one was compared with the user.
        is_judged = not _is_user(wanted, self._config) or bool(wanted.partition(":")[2])
        is_judged |= any(
            ":" in each and _is_user(each, self._config) for each in self._policy.users
        )
        gids = set(user.additional_gids) - {user.gid} | (set() if is_judged else {user.gid})
        others = gids - {*own, *self._policy.groups, *self._groups_added}
        for gid in sorted(others & self._files.groups if others and self._files else ()):
            yield self._finding(
                False,
                "config.groups",
                f"it is in the group {gid}, which its user in the image is not, and which files of"
                " the image give other rights",
                path="process.user",
                got=str(gid),
                expected=", ".join(map(str, own)),
                next_=f"start it without; [config] groups = [{gid}] in the policy",
            )

    def _env(self) -> Iterator[Finding]:
        for name in dict.fromkeys(self._config.env):
            if _is_named(name, self._policy.env):
                continue
            shown = printable(name)
            if why := self._engine.why_unknown(name):
                yield self._finding(
                    False,
                    "config.env",
                    f"{shown}, which {why}",
                    path="process.env",
                    got=shown,
                    expected="not set, or a usual path",
                    next_=f"start it without; [config] env = ['{shown}'] in the policy",
                )
                continue
            if not makes_load(name) or self._is_harmless(name):
                continue
            if self._has_value(name):
                yield from self._value(name)
                continue
            # One of several is not the image's, whatever its value is.
            doubled = len(self._hidden_values[name]) > 1
            if name in self._image.env and not doubled:
                yield Finding(
                    severity="info",
                    rule="config.env",
                    what=f"{shown} is set, as in the image; its value is not compared",
                    record=self._record,
                    path="process.env",
                    got=shown,
                )
                continue
            how = "is set to several values" if doubled else "is set"
            yield self._finding(
                False,
                "config.env",
                f"{shown} {how}, which makes programs load other code",
                path="process.env",
                got=shown,
                expected="one value" if doubled else "not set, as in the image",
                next_=f"start it without; [config] env = ['{shown}'] in the policy",
            )

    def _is_harmless(self, name: str) -> bool:
        """Whether all values of a variable are known to load nothing."""
        values = HARMLESS.get(name, ())
        if self._secret is None or not values or name not in self._hidden_values:
            return False
        return self._hidden_values[name] <= {hidden_value(self._secret, one) for one in values}

    def _has_value(self, name: str) -> bool:
        """Whether a variable's value can be compared with the image's."""
        return self._secret is not None and name in self._image.env_values

    def _value(self, name: str) -> Iterator[Finding]:
        assert self._secret is not None
        value, shown = self._image.env_values[name], printable(name)
        if self._hidden_values[name] != {hidden_value(self._secret, value)}:
            yield self._finding(
                False,
                "config.env",
                f"{shown}, which makes programs load code, has not the image's value",
                path="process.env",
                got=f"{shown}=...",
                expected=printable(value),
                next_=f"start it without; [config] env = ['{shown}'] in the policy",
            )

    @cached_property
    def _hidden_values(self) -> defaultdict[str, set[str]]:
        """What stands for the values of each variable."""
        found: defaultdict[str, set[str]] = defaultdict(set)
        for name, hidden in self._config.hidden_env:
            found[name].add(hidden)
        return found

    def _hooks(self) -> Iterator[Finding]:
        for hook in self._config.hooks:
            command, at = hook_command(hook), brief(hook.path)
            if hook.stage not in engines.HOOK_STAGES_INSIDE:
                if not _is_engines_hook(hook):
                    what = f"the hook {at} runs on the host ({hook.stage})"
                    yield self._finding(
                        True,
                        "config.hook",
                        what,
                        path=f"hooks.{hook.stage}",
                        got=_shell(command),
                        expected="none but the engine's",
                    )
                continue
            yield self._finding(
                command in self._policy.hooks,
                "config.hook",
                f"the hook {at} runs in the container before its command",
                path=f"hooks.{printable(hook.stage)}",
                got=_shell(command),
                expected="none",
                next_=f"start it without; [config] hooks = [{array(command)}] in the policy",
            )
            # The policy names its path and arguments; these decide what that runs.
            for name in dict.fromkeys(hook.env):
                if _is_named(name, self._policy.hook_env) or not makes_load(name):
                    continue
                shown = printable(name)
                yield self._finding(
                    False,
                    "config.env",
                    f"{shown} is set for the hook {at}, which makes it load other code",
                    path=f"hooks.{printable(hook.stage)}",
                    got=shown,
                    expected="not set",
                    next_=f"start it without; [config] hook_env = ['{shown}'] in the policy",
                )


def _is_named(name: str, allowed: Collection[str]) -> bool:
    """Whether a policy has a variable, by its name as it is or as findings print it."""
    return not {name, printable(name)}.isdisjoint(allowed)


def hook_command(hook: Hook) -> tuple[str, ...]:
    """Return a hook's path and arguments, as the policy has them."""
    return (hook.path, *hook.args)


def _is_engines_hook(hook: Hook) -> bool:
    """Whether it is the one by which dockerd is told of the network namespace."""
    return (
        hook.stage == "prestart"
        and matches_any(("/proc/*/exe",), hook.path)
        and hook.args[:1] == ("libnetwork-setkey",)
    )


def steered(name: str, value: str) -> str:
    """Return an annotation with its value, as the policy has it."""
    return f"{name}={value}"


def shared_with_host(config: ConfigSummary) -> dict[str, str]:
    """Return the types of the namespaces that are the host's, and how that is seen."""
    joined = {each.type: each.path for each in config.joined_namespaces}
    return dict.fromkeys(config.host_namespaces, "the host's") | {
        name: path
        for name, path in joined.items()
        if path.startswith("/proc/1/ns/") or path in engines.HOST_NAMESPACES
    }


def device_number(device: Device) -> str:
    """Return a device's type and numbers, as a rule of the device controller writes them."""
    kind = {"u": "c"}.get(device.type, device.type)  # unbuffered, as mknod(1) calls it
    # A runtime takes a number that is not there for 0.
    return str(DeviceRule(type=kind, major=device.major or 0, minor=device.minor or 0))


def device_key(device: Device) -> str:
    """Return the TOML that allows a device, and no other in its place, in ``[config] devices``."""
    path = f"path = {quoted(exactly(path_bytes(device.path)))}"
    if device.type not in {"b", "c", "p", "u"}:
        return f"{{{path}}}"  # no runtime makes one
    number = device_number(device)
    if device.major in DYNAMIC_MAJORS.get(number[0], ()):
        number = f"{number[0]} dynamic:*"
    return f"{{{path}, number = {quoted(number)}}}"


def device_rules_beyond(config: ConfigSummary) -> list[DeviceRule]:
    """Return the rules for other devices than every container has, and than are listed by path."""
    known = {*engines.DEVICE_RULES, *map(device_number, config.devices)}
    return [rule for rule in config.device_rules if str(rule) not in known]


def _is_allowed(allowed: AllowedDevice, device: Device) -> bool:
    is_number = allowed.number is None or covers(allowed.number, device_number(device))
    return is_number and matches_any((allowed.path,), device.path)


def masked_beyond(config: ConfigSummary) -> list[bytes]:
    """Return what is masked beside parts of /proc and /sys; a relative path is from the root."""
    paths = (*config.masked_paths, *(f"/{path}" for path in config.masked_relative))
    return [path_bytes(path) for path in dict.fromkeys(paths) if not _is_kernels(path)]


def capability_names(config: ConfigSummary) -> set[str]:
    """Return what is in any of the capability sets."""
    sets = config.capabilities
    return {*sets.bounding, *sets.effective, *sets.inheritable, *sets.permitted, *sets.ambient}


def as_root(config: ConfigSummary) -> frozenset[str]:
    """Return the ambient capabilities by which a user does as root does."""
    return AS_ROOT.intersection(config.capabilities.ambient)


def writable_settings(config: ConfigSummary) -> list[str]:
    """Return which of the kernel's own settings are there to be written."""
    kept = _kept(config)
    at = dict.fromkeys(each.destination for each in config.mounts if each.type == "proc")
    paths = (f"{each.rstrip('/')}/{name}" for each in at for name in KERNEL_SETTINGS)
    return list(islice((path for path in paths if not kept.has(path)), _SETTINGS))


def writable_sysfs(config: ConfigSummary) -> list[Mount]:
    """Return the mounts of sysfs in which may be written."""
    kept = _kept(config)
    found = (mount for mount in config.mounts if mount.type == "sysfs" and not mount.read_only)
    return [mount for mount in found if not kept.has(mount.destination)]


def _kept(config: ConfigSummary) -> Below:
    """Return what is hidden from the container, or read-only for it.

    What goes up by ``..`` is somewhere else after a link (/proc/net/../sys), and runtimes pass over
    what is nowhere.
    """
    paths = (*config.masked_paths, *config.read_only_paths)
    names = (path for path in paths if ".." not in path.split("/"))
    return Below(f"{posixpath.normpath(path)}/" for path in names)


def privilege_keys(config: ConfigSummary) -> tuple[str, ...]:
    """Return the narrowest keys of ``[config]`` that allow what a container has of all that
    ``--privileged`` gives: whatever is called privileged has not all of it."""
    is_all = config.all_devices and not config.masked_paths
    if is_all and capability_names(config) >= ALL_CAPABILITIES:
        return ("allow_privileged = true",)
    is_kept = config.masked_paths and not (writable_settings(config) or writable_sysfs(config))
    unmasked = () if is_kept else ("allow_unmasked = true",)
    devices = (f"device_rules = {array([ALL_DEVICES])}",) if config.all_devices else ()
    return (*unmasked, *devices)


def command_of(config: ConfigSummary) -> tuple[str, ...]:
    """Return the command without an engine's init program before it (``--init``)."""
    match config.args:
        case (init, "--", *rest):
            mount = Places(config.mounts).over(path_bytes(init))
            if mount is not None and is_engines_init(mount, path_bytes(init)):
                return tuple(rest)
    return config.args


def _is_user(wanted: str, config: ConfigSummary) -> bool:
    user, _, group = wanted.partition(":")
    if _number(user or "0") != str(config.user.uid):
        return False
    return not group or _number(group) == str(config.user.gid)


def _number(name: str) -> str:
    """Return the number of a user or group as engines read it: 01000 is 1000 to them."""
    if name.isascii() and name.isdecimal():
        return name.lstrip("0") or "0"
    return {"root": "0"}.get(name, name)


def _directory(path: str) -> str:
    """Return a directory's name as engines write it, whatever a tool has put into an image."""
    return posixpath.normpath("/" + path.lstrip("/"))


def _shell(args: tuple[str, ...]) -> str:
    return " ".join(printable(arg) if arg and " " not in arg else repr(arg) for arg in args)


def _is_kernels(path: str) -> bool:
    """Whether nothing of the image can be at a path: it leads nowhere out of /proc and /sys."""
    top, *below = [name for name in path.split("/") if name not in {"", "."}] or [""]
    leads_out = ".." in below or (top == "proc" and below and _PROCESS.fullmatch(below[0]))
    return top in {"proc", "sys"} and not leads_out


def _may_be_masked(allowed: str, path: bytes, image: ImageFiles | None) -> bool:
    """Whether a pattern allows a path; one that goes up by ``..`` has to be named as it is."""
    if b"/../" in path + b"/":
        return allowed == exactly(path)
    return matches(allowed, path) and stays(allowed, path, image)


_PROCESS = re.compile("self|thread-self|[0-9]+")
"""What in /proc is a process: its ``root`` and ``cwd`` lead back to the image's files."""
