"""What the sensor is told of a container's rights: its root, its capabilities, its system calls.

Pure, but for :func:`device_of_root`, which reads the process's mounts.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from cima_runc.base import limits
from cima_runc.base.bounded import read_bounded
from cima_runc.base.errors import CimaError
from cima_runc.measure.bundle import root_of
from cima_runc.measure.overlay import OverlayError, find_mount, parse_mountinfo
from cima_runc.sensor.loader import Rights

_CAPABILITIES: Final = (
    *("CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID"),
    *("SETPCAP", "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW"),
    *("IPC_LOCK", "IPC_OWNER", "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT"),
    *("SYS_ADMIN", "SYS_BOOT", "SYS_NICE", "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD"),
    *("LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP", "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG"),
    *("WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF", "CHECKPOINT_RESTORE"),
)
"""In the order of include/uapi/linux/capability.h."""


def rights_of(
    config: Mapping[str, Any], pid: int, root_device: int | None, *, deny_memory: bool
) -> Rights:
    """Return the rights of a container with this OCI configuration.

    ``pid`` is its first process, ``root_device`` as :func:`device_of_root` found it; without one no
    layer of its root is beyond the container's reach.
    """
    linux = config.get("linux")
    return Rights(
        pid=pid,
        root_device=root_device,
        bounding=bounding_set(config),
        seccomp=isinstance(linux, dict) and bool(linux.get("seccomp")),
        deny_memory=deny_memory,
    )


def device_of_root(
    config: dict[str, Any], bundle: str, pid: int, *, uid: int = 0, limit: int = limits.MOUNTINFO
) -> int | None:
    """Return the device of the overlay that a container's root is; None where that cannot be said.

    ``pid`` is its first process, ``uid`` whose it is: of another user's path nothing is looked at,
    since his file system need never answer. With as many mounts as a user can make this takes
    seconds: in the writer's thread only with a small ``limit``, in bytes of them.
    """
    try:
        mountinfo = read_bounded(Path(f"/proc/{pid}/mountinfo"), limit)
        root = root_of(config, bundle)
        named = os.path.normpath(root) if uid else os.path.realpath(root)
        return root_device(mountinfo, os.fsencode(named))
    except (OSError, CimaError):
        return None


def root_device(mountinfo: bytes, root: bytes) -> int | None:
    """Return the kernel's ``dev_t`` of the overlay at ``root``, None where that is no overlay."""
    try:
        mount = find_mount(parse_mountinfo(mountinfo), root)
    except OverlayError:
        return None
    if mount is None or mount.fstype != b"overlay" or mount.point != root:
        return None
    major, minor = mount.device
    return major << 20 | minor


def bounding_set(config: Mapping[str, Any]) -> int | None:
    """Return the capabilities that a container's processes can have, as the kernel's bits.

    None where the configuration does not say it, or names one that is not known here.
    """
    process = config.get("process")
    capabilities = process.get("capabilities") if isinstance(process, dict) else None
    names = capabilities.get("bounding") if isinstance(capabilities, dict) else None
    if not isinstance(names, list):
        return None
    bits = 0
    for name in names:
        short = str(name).removeprefix("CAP_")
        if short not in _CAPABILITIES:
            return None
        bits |= 1 << _CAPABILITIES.index(short)
    return bits
