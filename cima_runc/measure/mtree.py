r"""A layer's canonical manifest, in the form of mtree(5): one layer, one byte string, one digest.

The same layer gives the same bytes wherever it comes from: the archive in an image, or a directory
where Docker, containerd, Podman or umoci unpacked it. Readers of mtree(5) take it: NetBSD's mtree
and bsdtar (which do not know `xattr.`: the one refuses it, the other only says so) and go-mtree
from 0.5.4 on (which does not know `device`). All of the following is part of the format, called
`cima-layer-1`.

**The digest** of a layer is the SHA-256 of the manifest's bytes.

**Lines** are ASCII and end in a newline, the last one too. The first is `#mtree cima-layer-1`,
the second the layer's root. Then follows one line for every other entry, its parent always being
an earlier line. A line is a path, and for each keyword a space, the keyword, `=` and its value.
There are no comments, no `/set`, no continued lines.

**Order**: by path, bytewise, where the `/` between components counts as less than any other byte;
that is, a directory, then its entries sorted by name, each followed by what it holds.

**Paths** are `.` for the root and `./a/b` for the rest. In paths, link targets and the names of
attributes, each byte that is not 0x21 to 0x7e, and each of `# * ? [ \`, is written as `\` and
three octal digits, as vis(3) does with VIS_OCTAL and VIS_GLOB; in names of attributes `=` as well.

**Keywords**, in this order, each one present exactly where it says:

========================  ===================================================================
``type=``                 everywhere: dir, file, link, block, char, fifo or socket
``link=``                 a symbolic link's target, its bytes escaped as in paths
``device=native,M,m``     a block or character device's major and minor number, decimal
``mode=``                 the lower twelve bits, octal, with one leading 0 (0 itself is `0`);
                          a symbolic link has 0777
``uid=`` ``gid=``         the numeric owner, decimal, as seen in the container: for a layer that
                          lies shifted into a user namespace, before the shift
``size=``                 a regular file's bytes, decimal
``sha256digest=``         a regular file's content, 64 lower-case hex digits
``xattr.NAME=``           standard base64 (with padding) of a value, sorted by NAME bytewise
========================  ===================================================================

**The root** is `. type=dir` and nothing else (but for overlay's attributes): its mode and owner
are the engine's and not the layer's. Docker and containerd skip the archive's entry for it, Podman
copies the parent layer's.

**Attributes** are security.capability, system.posix_acl_access and system.posix_acl_default, in
the form of :mod:`cima_runc.measure.xattrs`, and those of overlayfs's that change the merged tree,
all called trusted.overlay.NAME.

**A whiteout** (an entry removed from the layers below) is `type=char device=native,0,0` at the
removed path, with no other keyword, as overlayfs shows it; not `.wh.NAME`, which a layer on disk
can hold as an ordinary file. **An opaque directory** has `xattr.trusted.overlay.opaque=eQ==`.

**Left out**: times, and link counts (two names of one file are two lines with the same content),
since nothing is allowed or denied by them; and directories' sizes, which are the filesystem's.

**A directory that a layer's archive does not list** but that an entry needs is there with mode
0755 and owner 0:0, as Docker and Podman create it.
"""

import base64
import hashlib
import io
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, Literal

from cima_runc.base import limits
from cima_runc.base.errors import CimaError
from cima_runc.base.text import printable
from cima_runc.measure.xattrs import OPAQUE, OVERLAY, Xattrs

HEADER = b"#mtree cima-layer-1\n"
"""The first line of every manifest."""

FORMAT = "cima-layer-1"
"""The format's name, for records and files that hold a manifest's digest."""

Type = Literal["dir", "file", "link", "block", "char", "fifo", "socket"]

_TYPES = frozenset({"dir", "file", "link", "block", "char", "fifo", "socket"})


class MtreeError(CimaError):
    """A manifest is not one in canonical form."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a manifest."""

    path: bytes
    """Relative to the layer's root, without a leading `./`; the root itself is `.`."""
    type: Type
    mode: int | None = None
    """The lower twelve bits. None for the root and for a whiteout."""
    uid: int | None = None
    gid: int | None = None
    link: bytes | None = None
    """A symbolic link's target."""
    device: tuple[int, int] | None = None
    """A device's major and minor number."""
    size: int | None = None
    """A regular file's bytes."""
    sha256: bytes | None = None
    """A regular file's content's digest, 32 bytes."""
    xattrs: Xattrs = ()

    @property
    def is_whiteout(self) -> bool:
        """Whether the entry removes this path from the layers below."""
        return self.type == "char" and self.device == (0, 0) and self.mode is None

    @property
    def is_opaque(self) -> bool:
        """Whether the entry is a directory that hides what layers below have in it."""
        return self.type == "dir" and OPAQUE in self.xattrs


ROOT = Entry(b".", "dir")
"""The root of a layer that is not opaque."""


def whiteout(path: bytes) -> Entry:
    """Return the entry that removes ``path`` from the layers below."""
    return Entry(path, "char", device=(0, 0))


def sort_key(path: bytes) -> bytes:
    """Return what the entries of a manifest are sorted by."""
    return b"" if path == b"." else path.replace(b"/", b"\0")


_UNSAFE = re.compile(rb"[^!-~]|[#*?\[\\]")
_ESCAPE = re.compile(rb"\\([0-3][0-7][0-7])")


def escape(raw: bytes) -> str:
    r"""Return a path or link target with all but plain ASCII bytes as `\NNN`."""
    return _UNSAFE.sub(lambda match: b"\\%03o" % match[0][0], raw).decode("ascii")


def unescape(text: str) -> bytes:
    """Return the bytes that :func:`escape` was given. Raises :class:`MtreeError`."""
    try:
        raw = _ESCAPE.sub(lambda match: bytes([int(match[1], 8)]), text.encode("ascii"))
    except UnicodeEncodeError:
        raise MtreeError(f"not ASCII: {printable(text[:200])}") from None
    if escape(raw) != text:
        raise MtreeError(f"not escaped as vis(3) does: {printable(text[:200])}")
    return raw


def format_xattrs(xattrs: Xattrs) -> str:
    """Return the keywords of extended attributes, each with a space before it."""
    return "".join(
        f" xattr.{_xattr_name(name)}={base64.b64encode(value).decode()}" for name, value in xattrs
    )


def _xattr_name(name: str) -> str:
    return escape(os.fsencode(name)).replace("=", "\\075")


def format_mode(mode: int) -> str:
    """Return permission bits as a manifest has them."""
    return f"0{mode:o}" if mode else "0"


def format_entry(entry: Entry) -> str:
    """Return an entry's line, with its newline."""
    path = "." if entry.path == b"." else "./" + escape(entry.path)
    return path + format_keywords(entry)


def format_keywords(entry: Entry) -> str:
    """Return an entry's line without the path at its beginning."""
    words = [f" type={entry.type}"]
    if entry.link is not None:
        words.append(f"link={escape(entry.link)}")
    if entry.device is not None:
        words.append("device=native,{},{}".format(*entry.device))
    if entry.mode is not None:
        words.append(f"mode={format_mode(entry.mode)}")
    if entry.uid is not None:
        words.append(f"uid={entry.uid}")
    if entry.gid is not None:
        words.append(f"gid={entry.gid}")
    if entry.size is not None:
        words.append(f"size={entry.size}")
    if entry.sha256 is not None:
        words.append(f"sha256digest={entry.sha256.hex()}")
    return " ".join(words) + format_xattrs(entry.xattrs) + "\n"


def format_manifest(entries: Iterable[Entry]) -> bytes:
    """Return a whole manifest of entries that are complete and in order."""
    return HEADER + "".join(map(format_entry, entries)).encode("ascii")


def digest(manifest: bytes) -> str:
    """Return a layer's digest as `sha256:` and hex."""
    return "sha256:" + hashlib.sha256(manifest).hexdigest()


def parse_manifest(manifest: bytes) -> list[Entry]:
    """Return the entries of a manifest. Raises :class:`MtreeError`."""
    return list(read_manifest(io.BytesIO(manifest)))


def read_manifest(stream: BinaryIO) -> Iterator[Entry]:
    """Yield the entries of a manifest from an open file.

    Takes canonical manifests only: what comes out, formatted again, is what went in.
    Raises :class:`MtreeError`.
    """
    source = iter(lambda: stream.readline(limits.MANIFEST_LINE + 1), b"")
    if next(source, b"") != HEADER:
        raise MtreeError(
            f"a manifest must begin with {printable(HEADER[:-1])}",
            hint="use one that this version of cima wrote",
        )
    last: bytes | None = None
    ancestors: list[bytes] = []
    for number, line in enumerate(source, start=2):
        if number > limits.LAYER_ENTRIES + 2:
            raise MtreeError(f"a manifest of more than {limits.LAYER_ENTRIES} entries")
        try:
            entry = _parse_line(line)
            key = sort_key(entry.path)
            if last is None and entry.path != b".":
                raise MtreeError("the first entry must be the root")
            if last is not None and key <= last:
                raise MtreeError("out of order, or twice")
            _check_parent(entry, ancestors)
        except MtreeError as error:
            raise MtreeError(f"line {number} of a manifest: {error.what}") from None
        last = key
        yield entry
    if last is None:
        raise MtreeError("a manifest without its root")


def _check_parent(entry: Entry, ancestors: list[bytes]) -> None:
    """Keep the directories that the walk is in; refuse an entry that is in none of them."""
    if entry.path != b".":
        parent = entry.path.rpartition(b"/")[0] or b"."
        while ancestors and ancestors[-1] != parent:
            ancestors.pop()
        if not ancestors:
            raise MtreeError("its directory is not listed before it")
    if entry.type == "dir":
        ancestors.append(entry.path)
        if len(ancestors) > limits.LAYER_DEPTH + 1:
            raise MtreeError(f"more than {limits.LAYER_DEPTH} levels of directories")


def check_path(path: bytes) -> None:
    """Raise :class:`MtreeError` unless ``path`` can be the path of an entry below the root."""
    if len(path) >= limits.PATH:
        raise MtreeError(f"a path of {len(path)} bytes: the kernel takes {limits.PATH - 1}")
    for name in path.split(b"/"):
        if name in {b"", b".", b".."} or b"\0" in name:
            raise MtreeError(f"not a path in a layer: {printable(path[:200])}")
        if len(name) > limits.NAME:
            raise MtreeError(f"a name of {len(name)} bytes: filesystems take {limits.NAME}")


def _parse_line(line: bytes) -> Entry:
    if len(line) > limits.MANIFEST_LINE:
        raise MtreeError(f"longer than {limits.MANIFEST_LINE} bytes")
    try:
        text = line.decode("ascii")
    except UnicodeDecodeError:
        raise MtreeError("not ASCII") from None
    name, *keywords = text.removesuffix("\n").split(" ")
    values: dict[str, str] = {}
    xattrs: list[tuple[str, bytes]] = []
    for keyword, _, value in (word.partition("=") for word in keywords):
        if keyword.startswith("xattr."):
            own = os.fsdecode(unescape(keyword[6:].replace("\\075", "=")))
            xattrs.append((own, _base64(value)))
        else:
            values[keyword] = value
    entry = _entry(name, values, tuple(xattrs))
    _check_keywords(entry)
    if format_entry(entry) != text:
        raise MtreeError("not in canonical form")
    return entry


def _entry(name: str, values: dict[str, str], xattrs: Xattrs) -> Entry:
    kind = values.get("type", "")
    if kind not in _TYPES:
        raise MtreeError("no type that a manifest knows")
    if name != ".":
        if not name.startswith("./"):
            raise MtreeError("a path must begin with ./")
        check_path(path := unescape(name[2:]))
    else:
        path = b"."
    device = values.get("device")
    if device is not None:
        form, _, numbers = device.partition(",")
        major, _, minor = numbers.partition(",")
        if form != "native":
            raise MtreeError("not a device number")
    return Entry(
        path,
        kind,  # type: ignore[arg-type]  # checked against _TYPES above
        mode=_number(values.get("mode"), 0o7777, base=8),
        uid=_number(values.get("uid"), _MAX_ID),
        gid=_number(values.get("gid"), _MAX_ID),
        link=None if (link := values.get("link")) is None else unescape(link),
        device=None
        if device is None
        else (_number(major, MAX_MAJOR) or 0, _number(minor, MAX_MINOR) or 0),
        size=_number(values.get("size"), 2**63 - 1),
        sha256=None if (content := values.get("sha256digest")) is None else _sha256(content),
        xattrs=xattrs,
    )


_MAX_ID = 0xFFFFFFFF
MAX_MAJOR = 0xFFF
"""The largest major number (MINORBITS in linux/kdev_t.h leaves it 12 bits)."""
MAX_MINOR = 0xFFFFF
"""The largest minor number (20 bits)."""

_OWNED = frozenset({"mode", "uid", "gid"})
_KEYWORDS: dict[Type, frozenset[str]] = {
    "dir": _OWNED,
    "file": _OWNED | {"size", "sha256"},
    "link": _OWNED | {"link"},
    "block": _OWNED | {"device"},
    "char": _OWNED | {"device"},
    "fifo": _OWNED,
    "socket": _OWNED,
}


def _check_keywords(entry: Entry) -> None:
    """Raise :class:`MtreeError` unless the entry has what its type has, and no more."""
    present = {
        name
        for name in ("mode", "uid", "gid", "link", "device", "size", "sha256")
        if getattr(entry, name) is not None
    }
    wanted = _KEYWORDS[entry.type]
    if entry.path == b".":
        if entry.type != "dir" or any(not name.startswith(OVERLAY) for name, _ in entry.xattrs):
            raise MtreeError("the root must be `type=dir`")
        wanted = frozenset()
    elif entry.is_whiteout and not entry.xattrs:
        wanted = frozenset({"device"})
    if present != wanted:
        raise MtreeError(f"the keywords are not those of a {entry.type}")
    if entry.type == "link" and (entry.mode != 0o777 or entry.xattrs or not entry.link):
        raise MtreeError("a symbolic link has mode 0777, a target and no attributes")
    if entry.link is not None and (len(entry.link) > limits.LINK_TARGET or b"\0" in entry.link):
        raise MtreeError("not the target of a symbolic link")
    names = [os.fsencode(name) for name, _ in entry.xattrs]
    if names != sorted(set(names)):
        raise MtreeError("its attributes are out of order, or twice")


def _number(text: str | None, most: int, base: int = 10) -> int | None:
    if text is None:
        return None
    if not text or len(text) > 20 or not set(text) <= set("0123456789"[:base]):
        raise MtreeError("not a number")
    if (value := int(text, base)) > most:
        raise MtreeError(f"more than {most}")
    return value


def _sha256(text: str) -> bytes:
    if not re.fullmatch(r"[0-9a-f]{64}", text):
        raise MtreeError("not a SHA-256 digest")
    return bytes.fromhex(text)


def _base64(text: str) -> bytes:
    try:
        value = base64.b64decode(text, validate=True)
    except ValueError:
        raise MtreeError("not base64") from None
    if len(value) > limits.XATTR:
        raise MtreeError(f"an attribute of {len(value)} bytes")
    return value
