"""Owner, mode and type that fuse-overlayfs keeps in an extended attribute.

Where Podman may not set a file's owner or mode (`force_mask` in storage.conf(5)), the layer's file
has some other one, and the true one is in an attribute, which fuse-overlayfs shows to the
container. Form: `UID:GID:MODE` in decimal, decimal and octal, then perhaps `:TYPE` (file, dir,
symlink, pipe, socket, block-MAJOR-MINOR, char-MAJOR-MINOR).
"""

import re
from dataclasses import dataclass
from typing import cast

from cima_runc.base.errors import CimaError
from cima_runc.base.text import printable
from cima_runc.measure.mtree import MAX_MAJOR, MAX_MINOR, Type

NAMES = (
    "security.fuseoverlayfs.override_stat",
    "user.containers.override_stat",
    "user.fuseoverlayfs.override_stat",
)
"""In the order in which fuse-overlayfs looks for one on a layer's root; it then obeys that one."""

_FORM = re.compile(
    rb"([0-9]{1,10}):([0-9]{1,10}):([0-7]{1,7})"
    rb"(?::(?:(file|dir|symlink|pipe|socket)|(block|char)-([0-9]{1,5})-([0-9]{1,7})))?"
)
_TYPES = {b"file": "file", b"dir": "dir", b"symlink": "link", b"pipe": "fifo", b"socket": "socket"}


class OverrideError(CimaError):
    """The attribute is not of the form above."""


@dataclass(frozen=True, slots=True)
class Override:
    """What the container sees in place of what the layer's file has."""

    uid: int
    gid: int
    mode: int
    type: Type | None = None
    """None: that of the layer's file."""
    device: tuple[int, int] | None = None


def parse_override(value: bytes) -> Override:
    """Return what the attribute says. Raises :class:`OverrideError`."""
    match = _FORM.fullmatch(value)
    if not match:
        raise OverrideError(f"not an override_stat attribute: {printable(value[:200])}")
    uid, gid, mode, plain, device, major, minor = match.groups()
    if max(int(uid), int(gid)) >= 0xFFFFFFFF or int(major or 0) > MAX_MAJOR:
        raise OverrideError(f"numbers out of range in {printable(value)}")
    if int(minor or 0) > MAX_MINOR:
        raise OverrideError(f"numbers out of range in {printable(value)}")
    kind = cast("Type | None", _TYPES[plain] if plain else device and device.decode())
    return Override(
        int(uid),
        int(gid),
        int(mode, 8) & 0o7777,
        kind,
        (int(major), int(minor)) if device else None,
    )
