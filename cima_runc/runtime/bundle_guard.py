"""Whether anybody but the caller may write a bundle: then what is measured need not be what runs.

Launcher, runtime and agent read the configuration one after the other, each by its path. Who may
write there, or rename a directory on the way, can show each of them another one. So such a bundle
is refused, unless the settings say otherwise. native/bundle_guard.h is the launcher's quick form
of it, which says no in doubt. Standard library only: the shim uses it.

A directory with the sticky bit, such as /tmp, lets nobody rename what is another's. Below a
directory that nobody else may enter the rest does not matter: Podman gives directories there to
the container's own users.
"""

import errno
import os
import stat
import struct
from dataclasses import dataclass

from cima_runc.base.errors import CimaError
from cima_runc.base.text import printable

_LINKS = 40
"""Symbolic links in one path (MAXSYMLINKS in linux/namei.h)."""
_ACL_USER, _ACL_GROUP, _ACL_WRITE = 0x02, 0x08, 0x02
"""Of an access control list: a named user's entry, a named group's, and the right."""


class ForeignBundleError(CimaError):
    """Others than the caller may write the bundle."""


@dataclass(frozen=True)
class Foreign:
    """The first part of a path that others may write."""

    path: str
    who: str

    def refusal(self) -> ForeignBundleError:
        """Return the error for one who must not go on."""
        return ForeignBundleError(
            f"{printable(self.path)} may be written by {self.who}: what is measured there need "
            "not be what runs",
            hint='give it to the caller alone, or set foreign_bundles = "allow", which every '
            "record then says",
        )


def foreign_part(path: str, uid: int) -> Foreign | None:
    """Return the first part of ``path`` that others than root and ``uid`` may change; None: none.

    ``path`` is followed through symbolic links, each of which counts too.

    Raises:
        OSError: there is no such path.
    """
    todo = os.path.join(os.getcwd(), path).split("/")[::-1]
    at = ["/"]
    private = [False]
    links = 0
    while todo:
        name = todo.pop()
        if name in {"", "."} and len(at) > 1:
            continue
        if name == "..":
            if len(at) > 1:
                at.pop()
                private.pop()
            continue
        here = os.path.join(at[-1], name) if name not in {"", "."} else "/"
        status = os.lstat(here)
        if not private[-1]:
            who = _others(here, status, uid)
            if who:
                return Foreign(here, who)
        if stat.S_ISLNK(status.st_mode):
            links += 1
            if links > _LINKS:
                raise OSError(40, os.strerror(40), path)
            target = os.readlink(here)
            if target.startswith("/"):
                del at[1:], private[1:]
            todo += target.split("/")[::-1]
        elif here != "/":
            at.append(here)
            private.append(private[-1] or _is_private(status, uid))
    return None


def _others(path: str, status: os.stat_result, uid: int) -> str:
    """Return who else may change what is at ``path``, in words; empty for nobody."""
    if status.st_uid not in {0, uid}:
        return f"user {status.st_uid}"
    if stat.S_ISLNK(status.st_mode):
        return ""  # a link's mode means nothing
    if stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX:
        return ""
    if status.st_mode & stat.S_IWOTH:
        return "everybody"
    if status.st_mode & stat.S_IWGRP:
        # Where there is a list, this bit is the most that it may give (acl(5)).
        return f"group {status.st_gid}" if status.st_gid != 0 else _listed(path, uid)
    return ""


def _listed(path: str, uid: int) -> str:
    """Return whom an access control list lets write (linux/posix_acl_xattr.h)."""
    try:
        entries = os.getxattr(path, "system.posix_acl_access", follow_symlinks=False)[4:]
    except OSError as error:
        if error.errno in {errno.ENODATA, errno.EOPNOTSUPP}:
            return ""
        raise
    for tag, rights, who in struct.iter_unpack("<HHI", entries):
        if rights & _ACL_WRITE and tag == _ACL_USER and who not in {0, uid}:
            return f"user {who}"
        if rights & _ACL_WRITE and tag == _ACL_GROUP and who != 0:
            return f"group {who}"
    return ""


def _is_private(status: os.stat_result, uid: int) -> bool:
    return (
        stat.S_ISDIR(status.st_mode)
        and status.st_uid in {0, uid}
        and not status.st_mode & (stat.S_IXGRP | stat.S_IXOTH)
    )
