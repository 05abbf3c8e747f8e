"""The extended attributes that a layer's manifest holds, each in one canonical form.

An attribute is in a manifest if the kernel gives or takes rights by it (a file's capabilities,
access control lists) or if overlayfs changes the merged tree by it. Everything else is left out:
labels of the host's own policy (security.selinux, security.ima, security.evm), which say where a
layer lies and not what is in it, and user.*, which the kernel does not look at.
"""

import os
import struct
from collections.abc import Callable, Iterable

from cima_runc.base import limits
from cima_runc.base.errors import CimaError

CAPABILITY = "security.capability"
ACL_ACCESS = "system.posix_acl_access"
ACL_DEFAULT = "system.posix_acl_default"
SECURITY = frozenset({CAPABILITY, ACL_ACCESS, ACL_DEFAULT})
"""The attributes by which the kernel gives or takes rights."""

OVERLAY = "trusted.overlay."
"""The prefix that a manifest gives to overlayfs's attributes, whichever the layer itself has."""

OPAQUE = (OVERLAY + "opaque", b"y")
"""The one attribute that says: lower layers do not show through this directory."""

_BOOKKEEPING = frozenset({"origin", "impure", "nlink", "uuid"})
"""overlayfs's notes about inode numbers and link counts (fs/overlayfs/overlayfs.h): they change
nothing of what a container sees, and differ at every unpacking."""

Xattrs = tuple[tuple[str, bytes], ...]
"""Names and values, sorted by name."""


class XattrError(CimaError):
    """An extended attribute is not of the form that the kernel takes."""


def canonical(raw: Iterable[tuple[str, bytes]], mode: int, overlay: str | None = None) -> Xattrs:
    """Return what a manifest holds of a file's extended attributes.

    ``raw`` is the names and values as they are, ``mode`` the file's permission bits, ``overlay``
    the prefix of the attributes that the mount obeys (``trusted.overlay.``, or ``user.overlay.``
    with the option `userxattr`), or None for a tree that is not an overlay's layer.
    Raises :class:`XattrError`.
    """
    found: dict[str, bytes] = {}
    for name, value in raw:
        if len(value) > limits.XATTR:
            raise XattrError(f"the attribute {name} has {len(value)} bytes, not at most 16 KiB")
        if name in SECURITY:
            kept = _CANONICAL[name](value, mode)
            if kept is not None:
                found[name] = kept
        elif overlay is not None and name.startswith(overlay):
            own = name.removeprefix(overlay)
            if own not in _BOOKKEEPING:
                found[OVERLAY + own] = value
    return tuple(sorted(found.items(), key=lambda item: os.fsencode(item[0])))


def is_wanted(name: str, overlay: str | None) -> bool:
    """Whether :func:`canonical` looks at the attribute of this name at all."""
    return name in SECURITY or (overlay is not None and name.startswith(overlay))


def capability(value: bytes) -> bytes:
    """Return a file's capabilities as VFS_CAP_REVISION_2 (include/uapi/linux/capability.h).

    Revision 3 names, besides, the user namespace by its root's uid on this host: dropped, so that
    a layer gives one digest wherever it is unpacked. Revision 1 has 32 bits where 2 has 64.
    All fields are u32, little-endian. Raises :class:`XattrError`.
    """
    if len(value) >= 4:
        (magic,) = struct.unpack_from("<I", value)
        revision, flags = magic >> 24, magic & 0xFFFFFF
        if (revision, len(value)) == (1, 12):
            return struct.pack("<I", 0x02000000 | flags) + value[4:12] + bytes(8)
        if (revision, len(value)) in {(2, 20), (3, 24)}:
            return struct.pack("<I", 0x02000000 | flags) + value[4:20]
    raise XattrError(
        f"a {CAPABILITY} attribute of {len(value)} bytes is not of revision 1, 2 or 3",
        hint="the kernel would refuse to set it",
    )


_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
_NO_ID = 0xFFFFFFFF


def acl_access(value: bytes, mode: int) -> bytes | None:
    """Return an access control list as the kernel keeps it after chmod(2) to ``mode``.

    chmod writes the mode into the list (posix_acl_chmod in fs/posix_acl.c); a list that says
    no more than the mode is not kept. The form is linux/posix_acl_xattr.h's: a u32 version, then
    (u16 tag, u16 permissions, u32 id) each, little-endian. Raises :class:`XattrError`.
    """
    entries = _acl_entries(value)
    tags = {tag for tag, _, _ in entries}
    if not tags & {_USER, _GROUP, _MASK}:
        return None
    of_mode = {_USER_OBJ: mode >> 6 & 7, _OTHER: mode & 7}
    of_mode[_MASK if _MASK in tags else _GROUP_OBJ] = mode >> 3 & 7
    return _acl_bytes((tag, of_mode.get(tag, perm), own) for tag, perm, own in entries)


def acl_default(value: bytes, _mode: int = 0) -> bytes:
    """Return the access control list that new files of a directory get, as the kernel keeps it.

    Raises :class:`XattrError`.
    """
    return _acl_bytes(_acl_entries(value))


def _acl_entries(value: bytes) -> list[tuple[int, int, int]]:
    if len(value) < 4 or (len(value) - 4) % 8 or struct.unpack_from("<I", value) != (2,):
        raise XattrError(
            f"an access control list of {len(value)} bytes is not of version 2",
            hint="the kernel would refuse to set it",
        )
    return list(struct.iter_unpack("<HHI", value[4:]))


def _acl_bytes(entries: Iterable[tuple[int, int, int]]) -> bytes:
    return struct.pack("<I", 2) + b"".join(
        struct.pack("<HHI", tag, perm, own if tag in {_USER, _GROUP} else _NO_ID)
        for tag, perm, own in entries
    )


_CANONICAL: dict[str, Callable[[bytes, int], bytes | None]] = {
    CAPABILITY: lambda value, _mode: capability(value),
    ACL_ACCESS: acl_access,
    ACL_DEFAULT: acl_default,
}
