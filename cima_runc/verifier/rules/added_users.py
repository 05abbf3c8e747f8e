"""The lines that Podman adds to an image's ``/etc/passwd`` and ``/etc/group``.

Where a container's user is a number that the image does not know, Podman adds a line for it to the
file in the container's own layer before it calls the runtime, without being asked to. What the line
says follows from the image's text, and from the user and the working directory in the ``config``
record, which are judged themselves. So the file has to be exactly that. A text that somebody wrote
(``--passwd-entry``), or that is of another user of the host's (``--userns=keep-id``,
``--hostuser``), is none of these.

Source: Podman, libpod/container_internal_common.go (generateUserPasswdEntry,
generateUserGroupEntry, generatePasswdAndGroup) of 4.3, 5.4 and 5.8, and pkg/lookup.
"""

import base64
import hashlib
import re
from collections.abc import Iterator, Sequence

from cima_runc.measure.config_summary import ConfigSummary
from cima_runc.verifier.reference.file import ReferenceConfig, ReferenceFile
from cima_runc.verifier.reference.users import GROUP, PASSWD, names_by_number
from cima_runc.verifier.rules import engines
from cima_runc.verifier.rules.image_files import ImageFiles

NEW_FILE = ReferenceFile(type="file", mode="0600", uid=0, gid=0, layer=0)
"""As Podman makes one that the image does not have."""

_ONE_FIELD = re.compile(r"/[^:\x00-\x1f\x7f]*")
"""A directory that stays within its field: Podman writes any as it is, newlines too."""


def files_with_lines(
    path: str,
    image: ImageFiles,
    values: ReferenceConfig,
    config: ConfigSummary,
    host_users: Sequence[str] = (),
) -> Iterator[ReferenceFile]:
    """Yield what may be at a path when Podman has added its line to the image's own file.

    ``host_users``: names that the host may have for the container's user (``NAME:FULL NAME``).
    """
    if path not in {PASSWD, GROUP}:
        return
    passwd, group = _text(PASSWD, image), _text(GROUP, image)
    text = passwd if path == PASSWD else group
    if text is None:
        return
    if path == PASSWD:
        lines = _passwd_lines(names_by_number(text), config, host_users)
    else:
        lines = _group_lines(
            names_by_number(text), names_by_number(passwd or b""), values.user, config
        )
    for line in lines:
        sha256 = hashlib.sha256(text + line).hexdigest()
        yield (image.at(path) or NEW_FILE).model_copy(update={"sha256": sha256})


def groups_of_a_restart(image: ImageFiles, config: ConfigSummary) -> frozenset[int]:
    """Return the groups that a container's user is in when it starts again, by Podman's own lines.

    No group was given then, and the line names the user as the image or the other line does.
    """
    passwd, group = _text(PASSWD, image), _text(GROUP, image)
    if passwd is None or group is None:
        return frozenset()
    uid = config.user.uid
    added = 0 if uid in names_by_number(passwd) else uid
    return frozenset({added} - names_by_number(group).keys())


def _text(path: str, image: ImageFiles) -> bytes | None:
    """Return a file's text; None where it is not known, as in files that earlier versions made, or
    is behind a link."""
    found, directory = image.at(path), image.at("/etc")
    if directory is not None and directory.type != "dir":
        return None
    if found is None:
        return b""
    return None if found.text is None else base64.b64decode(found.text)


def _passwd_lines(
    known: dict[int, list[bytes]], config: ConfigSummary, host_users: Sequence[str]
) -> Iterator[bytes]:
    uid, gid, home = config.user.uid, config.user.gid, config.cwd
    if uid in known or _ONE_FIELD.fullmatch(home) is None:
        return
    # Since 4.4 it is called as the host calls a user of that number, where it has one.
    named = (*engines.HOST_USERS.get(uid, ()), *host_users)
    for each in (f"{uid}:container user", *named):
        name, _, full = each.partition(":")
        line = f"{name}:*:{uid}:{gid}:{full}:{home}:/bin/sh\n"
        yield line.encode("utf-8", "surrogatepass")


def _group_lines(
    known: dict[int, list[bytes]],
    users: dict[int, list[bytes]],
    of_image: str,
    config: ConfigSummary,
) -> Iterator[bytes]:
    """Yield lines for the group that was given; where none was, Podman takes 0 since 5.5, and
    before that the user's number."""
    uid, gid = config.user.uid, config.user.gid
    own = of_image.partition(":")[0]
    spelt = {str(uid).encode()}
    if own.isascii() and own.isdecimal() and (own.lstrip("0") or "0") == str(uid):
        spelt.add(own.encode())  # 01001
    names = spelt.union(users.get(uid, ()))
    for group in sorted({gid, uid, 0} - known.keys()):
        for name in sorted(spelt if group == uid != gid else names):
            yield b"%d:x:%d:%s\n" % (group, group, name)
