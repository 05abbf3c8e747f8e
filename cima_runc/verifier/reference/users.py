"""The numbers of a user that an image names, and of users' groups, by the image's own /etc/passwd
and /etc/group, and the texts of both.

Engines look them up when they start a container, through the image's symbolic links: both lead into
/nix/store where Nix has built the image. Sources: github.com/moby/sys/user (GetExecUser), which
Docker and containerd use; moby daemon/oci_linux.go (getUser), containerd oci/spec_opts.go
(WithUser), Podman pkg/lookup; passwd(5), group(5).
"""

import base64
import hashlib
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial

from cima_runc.base import limits
from cima_runc.verifier.reference.file import ReferenceFile
from cima_runc.verifier.reference.links import real
from cima_runc.verifier.reference.tar import Member

PASSWD, GROUP = "/etc/passwd", "/etc/group"
_NUMBER = re.compile("[0-9]{1,10}")
_KEPT = {b"etc/passwd", b"etc/group"}


class NameFiles:
    """Both files of each layer, kept as the layers are read."""

    def __init__(self) -> None:
        self._texts: dict[str, bytes] = {}

    def watch(self, members: Iterator[Member]) -> Iterator[Member]:
        """Yield a layer's members; of those two, what is read of the last of each name is kept."""
        kept: dict[bytes, bytes] = {}
        for member in members:
            name = member.name.removeprefix(b"./").lstrip(b"/")
            if member.type == b"0" and name in _KEPT and member.size <= limits.NAMES_FILE:
                member.content = _keeping(member.content, partial(kept.__setitem__, name))
            yield member
        for text in kept.values():
            self._keep(text)

    def missing(self, files: Mapping[str, ReferenceFile]) -> dict[int, tuple[ReferenceFile, ...]]:
        """Return those of both files that were not kept, by the layer that they are in.

        What is behind a symbolic link, or is one of several names, may be called otherwise in its
        archive. ``files`` are the flattened image.
        """
        found: dict[int, tuple[ReferenceFile, ...]] = {}
        for path in (PASSWD, GROUP):
            file = files.get(real(path, files))
            if file is None or file.sha256 is None or file.sha256 in self._texts:
                continue
            if (file.size or 0) <= limits.NAMES_FILE:
                found[file.layer] = (*found.get(file.layer, ()), file)
        return found

    def find(
        self, members: Iterator[Member], wanted: Collection[ReferenceFile]
    ) -> Iterator[Member]:
        """Yield a layer's members; what is read of the ``wanted`` is kept, however it is called."""
        sizes = {file.size for file in wanted}
        contents = {file.sha256 for file in wanted}
        for member in members:
            if member.type == b"0" and member.size in sizes:
                member.content = _keeping(member.content, partial(self._keep, only=contents))
            yield member

    def _keep(self, text: bytes, only: Collection[str | None] | None = None) -> None:
        sha256 = hashlib.sha256(text).hexdigest()
        if only is None or sha256 in only:
            self._texts[sha256] = text

    def number(self, user: str, files: Mapping[str, ReferenceFile]) -> str | None:
        """Return ``UID`` or ``UID:GID`` for an image's user; ``files`` are the flattened image.

        None where there is no name in it, or one that the image does not have.
        """
        name, colon, group = user.partition(":")
        # An empty one is none (`USER app:$GID`): root, and the user's own group.
        uid = _numbered(name, self._text(PASSWD, files)) if name else ""
        gid = _numbered(group, self._text(GROUP, files)) if group else ""
        number = f"{uid}{colon}{gid}"
        return None if uid is None or gid is None or number == user else number

    def groups(self, files: Mapping[str, ReferenceFile]) -> dict[str, tuple[int, ...]] | None:
        """Return the groups of each user in an image's passwd(5), by the user's number.

        Of several lines with one number engines take one or the other: all of theirs are here.
        None where what engines read was not, as what is too large.
        """
        if not all(self._is_read(path, files) for path in (PASSWD, GROUP)):
            return None
        members: dict[bytes, set[int]] = {}
        for fields in _lines(self._text(GROUP, files)):
            gid = _third(fields)
            if gid is not None and len(fields) > 3:
                for name in fields[3].split(b","):
                    members.setdefault(name, set()).add(gid)
        found: dict[str, set[int]] = {}
        for fields in _lines(self._text(PASSWD, files)):
            first = _third(fields[1:])
            uid = _third(fields)
            if uid is not None and first is not None:
                found.setdefault(str(uid), set()).update({first}, members.get(fields[0], ()))
        return {uid: tuple(sorted(gids)) for uid, gids in found.items()}

    def texts(self, files: Mapping[str, ReferenceFile]) -> dict[str, ReferenceFile]:
        """Return both files with their texts, where these were read."""
        return {
            path: files[path].model_copy(update={"text": base64.b64encode(text).decode("ascii")})
            for path in (PASSWD, GROUP)
            if path in files and (text := self._texts.get(files[path].sha256 or "")) is not None
        }

    def _is_read(self, path: str, files: Mapping[str, ReferenceFile]) -> bool:
        """Whether a file's text is known, or that there is none."""
        at = real(path, files)
        found = files.get(at)
        if found is not None:
            return (found.sha256 or "") in self._texts
        return at == path  # a link that leads nowhere may lead to a mount

    def homes(self, files: Mapping[str, ReferenceFile]) -> tuple[str, ...]:
        """Return the home directories that an image's passwd(5) names: what engines set ``HOME``
        to, whether the image has them or not."""
        lines = _lines(self._text(PASSWD, files))
        found = {fields[5] for fields in lines if len(fields) > 5}
        texts = (home.decode("utf-8", "ignore") for home in found if home.startswith(b"/"))
        return tuple(sorted(set(texts)))

    def _text(self, path: str, files: Mapping[str, ReferenceFile]) -> bytes:
        found = files.get(real(path, files))
        return self._texts.get(found.sha256 or "", b"") if found is not None else b""


def names_by_number(text: bytes) -> dict[int, list[bytes]]:
    """Return the names in a passwd(5) or group(5) by the numbers in their third fields."""
    found: dict[int, list[bytes]] = {}
    for fields in _lines(text):
        number = _third(fields)
        if number is not None:
            found.setdefault(number, []).append(fields[0])
    return found


def _keeping(
    content: Callable[[], Iterator[bytes]], keep: Callable[[bytes], None]
) -> Callable[[], Iterator[bytes]]:
    def read() -> Iterator[bytes]:
        parts = []
        for part in content():
            parts.append(part)
            yield part
        keep(b"".join(parts))

    return read


def _numbered(name: str, text: bytes) -> str | None:
    """Return a user's or group's number: the third field of the first line of its name."""
    if _NUMBER.fullmatch(name):
        return name
    for fields in _lines(text):
        if len(fields) > 2 and fields[0] == name.encode("utf-8", "surrogatepass") and name:
            number = _third(fields)
            return None if number is None else str(number)
    return None


def _lines(text: bytes) -> Iterator[list[bytes]]:
    for line in text.split(b"\n"):
        yield line.strip().split(b":")


def _third(fields: Sequence[bytes]) -> int | None:
    """Return the number in the third field."""
    number = fields[2].decode("latin-1") if len(fields) > 2 else ""
    return int(number) if _NUMBER.fullmatch(number) else None
