"""A bundle that the engine gave to the container's own root is taken back before it is read.

With a user namespace Podman makes the bundle's directory the property of the id that is root in
the container. Who is that id on the host (another container with the same ids, a user with
that subordinate range) could then show launcher, runtime and agent different configurations. The
container's root has to enter and read there, not to write: so the directory becomes the caller's,
and the group of the container's root keeps reading (docs/adr/0093). Standard library only.
"""

import os
import stat
from contextlib import suppress
from typing import Any

from cima_runc.base import limits
from cima_runc.base.errors import CimaError
from cima_runc.base.jsonio import load_object
from cima_runc.runtime.bundle_guard import foreign_part

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def take_back(config: str, uid: int) -> bool:
    """Make the directory of ``config``, an absolute path, the property of ``uid``, who calls.

    Only where all above it is the caller's or root's alone, and so is the configuration, and this
    says that the owner is the root of the container's user namespace. Returns whether it was; the
    bundle is to be looked at again then, since until that moment others could write there.
    """
    directory, name = os.path.split(config)
    with suppress(OSError, CimaError):
        if foreign_part(os.path.dirname(directory), uid) is not None:
            return False
        handle = os.open(directory, _DIRECTORY)
        try:
            return _take(handle, name, uid)
        finally:
            os.close(handle)
    return False


def _take(directory: int, name: str, uid: int) -> bool:
    status = os.fstat(directory)
    file = os.open(name, _FILE, dir_fd=directory)
    with open(file, "rb") as opened:
        found = os.fstat(file)
        if not stat.S_ISREG(found.st_mode) or found.st_uid not in {0, uid}:
            return False
        if found.st_mode & stat.S_IWOTH or (found.st_mode & stat.S_IWGRP and found.st_gid != 0):
            return False
        config = load_object(
            opened.read(limits.CONFIG_JSON + 1), what=name, limit=limits.CONFIG_JSON
        )
    root = _root_of_its_namespace(config)
    if root is None or root[0] != status.st_uid or root[0] in {0, uid}:
        return False
    mode = stat.S_IMODE(status.st_mode)
    # First the owner, who could set the mode again.
    os.fchown(directory, uid, root[1])
    as_group = (mode & (stat.S_IRUSR | stat.S_IXUSR)) >> 3
    os.fchmod(directory, (mode & ~(stat.S_IWGRP | stat.S_IWOTH)) | as_group)
    return True


def _root_of_its_namespace(config: dict[str, Any]) -> tuple[int, int] | None:
    """Return the host's user and group id that are root in the container's user namespace."""
    linux = config.get("linux")
    if not isinstance(linux, dict):
        return None
    namespaces = linux.get("namespaces")
    if not isinstance(namespaces, list) or not any(
        isinstance(each, dict) and each.get("type") == "user" for each in namespaces
    ):
        return None
    uid, gid = _outside(linux.get("uidMappings")), _outside(linux.get("gidMappings"))
    return None if uid is None or gid is None else (uid, gid)


def _outside(mappings: object) -> int | None:
    """Return the host's id that is 0 inside; None: there is none."""
    for each in mappings if isinstance(mappings, list) else []:
        if isinstance(each, dict) and each.get("containerID") == 0:
            host = each.get("hostID")
            return host if type(host) is int and 0 < host < 1 << 32 else None
    return None
