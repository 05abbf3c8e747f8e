"""What the rules need of a measured OCI configuration.

The configuration is what the runtime started the container with; what is not of the form that the
specification gives it, the runtime would not have taken, and is read here as not being there.
Source: OCI runtime specification, config.md and config-linux.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Mount:
    """One mount."""

    destination: str
    type: str
    """Of the filesystem; ``bind`` for a file or directory of the host."""
    source: str
    options: tuple[str, ...]

    @property
    def is_read_only(self) -> bool:
        """Whether it is mounted read-only."""
        return "ro" in self.options


@dataclass(frozen=True)
class ContainerConfig:
    """What the configuration says of the process and of what it can reach."""

    args: tuple[str, ...]
    cwd: str
    uid: int
    gid: int
    env: tuple[str, ...]
    """Names of the environment variables."""
    capabilities: frozenset[str]
    """All of its capability sets together."""
    namespaces: Mapping[str, str]
    """Each kind that the container does not share with the runtime: its path, or empty."""
    mounts: tuple[Mount, ...]
    devices: tuple[str, ...]
    """Paths of the devices that are made for it."""
    reaches_all_devices: bool
    masks_paths: bool
    """Whether parts of /proc and /sys are hidden."""
    has_seccomp: bool

    def mount_over(self, path: str) -> Mount | None:
        """Return the mount that ``path`` lies on; None for the root filesystem."""
        best = None
        for mount in self.mounts:
            at = mount.destination.rstrip("/")
            if path == at or path.startswith(at + "/"):
                best = mount if best is None or len(at) >= len(best.destination) else best
        return best


def read_config(config: Mapping[str, Any]) -> ContainerConfig:
    """Read the content of a ``config`` record."""
    process, linux = _dict(config.get("process")), _dict(config.get("linux"))
    user = _dict(process.get("user"))
    capabilities = _dict(process.get("capabilities"))
    return ContainerConfig(
        args=_texts(process.get("args")),
        cwd=_text(process.get("cwd")),
        uid=_number(user.get("uid", 0)),
        gid=_number(user.get("gid", 0)),
        env=tuple(item.partition("=")[0] for item in _texts(process.get("env"))),
        capabilities=frozenset(
            name.upper() for names in capabilities.values() for name in _texts(names)
        ),
        namespaces={
            _text(each.get("type")): _text(each.get("path"))
            for each in _dicts(linux.get("namespaces"))
        },
        mounts=tuple(map(_mount, _dicts(config.get("mounts")))),
        devices=tuple(_text(each.get("path")) for each in _dicts(linux.get("devices"))),
        reaches_all_devices=_reaches_all(_dict(linux.get("resources"))),
        masks_paths=bool(_texts(linux.get("maskedPaths"))),
        has_seccomp=bool(_dict(linux.get("seccomp"))),
    )


def _mount(each: Mapping[str, Any]) -> Mount:
    options = _texts(each.get("options"))
    is_bind = "bind" in options or "rbind" in options
    kind = "bind" if is_bind else _text(each.get("type"))
    return Mount(_text(each.get("destination")), kind, _text(each.get("source")), options)


def _reaches_all(resources: Mapping[str, Any]) -> bool:
    """Whether the last rule of the device controller for all devices allows to write to them."""
    allowed = False
    for rule in _dicts(resources.get("devices")):
        numbers = {rule.get("major"), rule.get("minor")} - {None, -1}
        if not numbers and rule.get("type") in {None, "", "a", "b"}:
            allowed = rule.get("allow") is True and "w" in _text(rule.get("access") or "rwm")
    return allowed


def _dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _dicts(value: object) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _texts(value: object) -> tuple[str, ...]:
    return tuple(map(str, value)) if isinstance(value, list) else ()


def _number(value: object) -> int:
    # A number beyond 2^53 is text in a record (cima_runc.measure.oci_config).
    return int(value) if isinstance(value, int | str) and str(value).isdecimal() else -1
