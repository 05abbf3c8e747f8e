"""What a layer's archive becomes when an engine unpacks it, without unpacking it.

The archive is read once, as a stream; files are hashed and not kept. Members are applied in order
to a tree in memory by the rules that Docker (overlay2), containerd and Podman share; where they
differ, or where one of them fails, is said below. What none of them unpacks is an error.

- A member replaces an earlier one of the same path; a directory over a directory keeps what is in
  it and takes the new mode and owner. (Docker and Podman refuse an archive with a path twice.)
- A path goes through symbolic links of this layer only, and never above its root.
- A hard link is another name of a file of this layer. Its header's mode, owner and attributes
  become the file's, since engines apply them again, and chown(2) first takes its capabilities.
- `.wh.NAME` removes NAME from the layers below, `.wh..wh..opq` all that they have in its directory.

They differ in this, which is why a layer may have more than one digest:

- Directories that are needed and not listed: Docker and Podman make them with mode 0755 and owner
  0:0. containerd copies mode, owner and attributes from the nearest layer below that has them.
- In the bottom layer, containerd makes nothing of whiteouts.
- A directory that is not listed, in one with the setgid bit, may get its group: not modelled here.
- Podman does not chown(2) a hard link whose owner is right already, so that capabilities stay.
- All of them leave out nodes of devices where they run without root's rights, in a user namespace.
  (That containerd then makes no directory either that only such a node needs is not modelled.)
- Some of them unpack into a mount there: :mod:`cima_runc.verifier.reference.mounted`.

Sources: moby/go-archive archive.go and containers/storage pkg/archive (createTarFile, inUserns),
containerd pkg/archive (skipFile).
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal, get_args

from cima_runc.base import limits
from cima_runc.base.errors import CimaError
from cima_runc.base.text import printable
from cima_runc.measure.mtree import (
    MAX_MAJOR,
    MAX_MINOR,
    Entry,
    MtreeError,
    Type,
    check_path,
    whiteout,
)
from cima_runc.measure.xattrs import (
    CAPABILITY,
    OPAQUE,
    SECURITY,
    XattrError,
    canonical,
)
from cima_runc.verifier.reference.tar import Member

_WHITEOUT = b".wh."
_OPAQUE = b".wh..wh..opq"
_LINKS = 255
"""Symbolic links followed in one path (as in containerd's fs.RootPath)."""
_MAX_ID = 0xFFFFFFFE


class ImageLayerError(CimaError):
    """A layer's archive has something that engines do not unpack."""


@dataclass(slots=True)
class Node:
    """One inode. Hard links are one node under several names."""

    type: Type
    mode: int = 0
    uid: int = 0
    gid: int = 0
    link: bytes | None = None
    device: tuple[int, int] | None = None
    size: int | None = None
    sha256: bytes | None = None
    xattrs: dict[str, bytes] = field(default_factory=dict)
    """As in the archive."""
    kept: bytes | None = None
    """Capabilities that a hard link took from the file, but not with Podman."""
    children: dict[bytes, "Node"] | None = None
    """A directory's entries."""
    is_whiteout: bool = False
    is_opaque: bool = False
    is_implied: bool = False
    """Whether the archive does not list the directory."""
    is_anew: bool = False
    """Whether the archive had something else there before, or removed what layers below have."""
    is_device: bool = False
    """Whether the archive has it as a node of a device; a whiteout by its name is none."""

    def entry(self, path: bytes) -> Entry:
        """Return the node's line in a manifest."""
        if self.is_whiteout:
            return whiteout(path)
        opaque = (OPAQUE,) if self.is_opaque else ()
        if path == b".":
            return Entry(path, "dir", xattrs=opaque)
        if self.type == "link":
            return Entry(path, "link", 0o777, self.uid, self.gid, link=self.link)
        xattrs = canonical(self.xattrs.items(), self.mode) + opaque
        return Entry(
            path,
            self.type,
            self.mode,
            self.uid,
            self.gid,
            device=self.device,
            size=self.size,
            sha256=self.sha256,
            xattrs=xattrs,
        )


def new_directory() -> Node:
    """Return a directory as engines make one that no archive lists."""
    return Node("dir", 0o755, children={}, is_implied=True)


class LayerTree:
    """A layer, as members make it."""

    def __init__(self) -> None:
        self.root = new_directory()
        self._entries = 0

    def apply(self, member: Member) -> None:
        """Apply the next member of the archive. Raises ImageLayerError, TarError."""
        try:
            self._apply(member)
        except (ImageLayerError, MtreeError, XattrError) as error:
            raise ImageLayerError(f"{printable(member.name[:200])}: {error.what}") from None

    def _apply(self, member: Member) -> None:
        path = _components(member.name)
        if not path:
            if member.type != b"5":
                raise ImageLayerError("the layer's root is not a directory")
            return  # its mode and owner are the engine's
        self._entries += 1
        if self._entries > limits.LAYER_ENTRIES:
            raise ImageLayerError(f"more than {limits.LAYER_ENTRIES} members")
        *above, name = path
        parent, real = self._resolve(above, make=True)
        check_path(b"/".join([*real, name]))
        if parent.is_whiteout and name.startswith(_WHITEOUT):
            return  # Podman skips what is inside of a removed directory; the others fail
        children = _children(parent)
        if name == _OPAQUE:
            parent.is_opaque = True
        elif name.startswith(_WHITEOUT):
            self._remove(children, name[len(_WHITEOUT) :])
        else:
            self._put(children, name, member)

    def _remove(self, children: dict[bytes, Node], name: bytes) -> None:
        """Apply a whiteout."""
        if name in {b"", b".", b".."} or name.startswith(_WHITEOUT):
            raise ImageLayerError("not a whiteout that engines know")
        if not children.setdefault(name, _whiteout()).is_whiteout:
            raise ImageLayerError("the layer has the file that it removes")

    def _put(self, children: dict[bytes, Node], name: bytes, member: Member) -> None:
        """Apply any other member."""
        xattrs = {key: value for key, value in member.xattrs.items() if key in SECURITY}
        for key in member.xattrs:
            # What a mount with `userxattr` would obey, user.overlay.*, is the user's own here.
            if key.startswith("trusted.overlay."):
                raise ImageLayerError(f"it sets overlayfs's own attribute {printable(key[:200])}")
        if max(member.uid, member.gid) > _MAX_ID:
            raise ImageLayerError(f"an owner of {member.uid}:{member.gid}")
        old = children.get(name)
        if member.type == b"5" and old is not None and old.children is not None:
            node = old
            node.is_implied = False
        else:
            children.pop(name, None)
            if member.type == b"1":
                node = self._hard_link(member)
                had = node.xattrs.pop(CAPABILITY, node.kept)
                node.kept = had if (node.uid, node.gid) == (member.uid, member.gid) else None
                if CAPABILITY in xattrs:
                    node.kept = None
            else:
                node = _node(member)
                node.is_anew = old is not None
            children[name] = node
        if node.is_whiteout:
            return
        node.uid, node.gid = member.uid, member.gid
        if node.type != "link":
            node.mode = member.mode & 0o7777
            node.xattrs.update(xattrs)
            canonical(node.xattrs.items(), node.mode)  # fails now, where the member is known

    def _hard_link(self, member: Member) -> Node:
        path = _components(member.link)
        target = None
        if path:
            *above, name = path
            target = _children(self._resolve(above, make=False)[0]).get(name)
        if target is None or target.is_whiteout:
            raise ImageLayerError(
                f"a hard link to {printable(member.link[:200])}, which this layer does not have",
                hint="engines cannot link to a file of a layer below",
            )
        if target.type == "dir":
            raise ImageLayerError(f"a hard link to the directory {printable(member.link[:200])}")
        return target

    def _resolve(self, path: list[bytes], *, make: bool) -> tuple[Node, list[bytes]]:
        """Return a directory by its path, and its path without symbolic links.

        Links of this layer are followed. ``make``: create what is missing, as engines do.
        """
        nodes, names = [self.root], list[bytes]()
        todo = list(reversed(path))
        links = 0
        while todo:
            name = todo.pop()
            if name == b"..":
                if names:
                    names.pop()
                    nodes.pop()
                continue
            children = _children(nodes[-1])
            node = children.get(name)
            if node is None:
                if not make:
                    raise ImageLayerError("its directory is not in this layer")
                node = children[name] = new_directory()
            if node.link is None:
                nodes.append(node)
                names.append(name)
                if len(names) >= limits.LAYER_DEPTH:
                    raise ImageLayerError(f"more than {limits.LAYER_DEPTH} levels of directories")
                continue
            links += 1
            if links > _LINKS:
                raise ImageLayerError("a loop of symbolic links")
            if node.link.startswith(b"/"):
                del nodes[1:], names[:]
            todo += [part for part in reversed(node.link.split(b"/")) if part not in {b"", b"."}]
            if len(todo) > limits.PATH:
                raise ImageLayerError("symbolic links make too long a path")
        return nodes[-1], names


def _whiteout() -> Node:
    return Node("char", device=(0, 0), is_whiteout=True)


def _children(node: Node) -> dict[bytes, Node]:
    if node.children is None:
        raise ImageLayerError("what should be its directory is not one")
    return node.children


def _components(name: bytes) -> list[bytes]:
    """Return the components of a member's name or a hard link's target; none for the root.

    An absolute name is below the container's root: every engine unpacks it there.
    """
    parts = [part for part in name.split(b"/") if part not in {b"", b"."}]
    if b".." in parts:
        raise ImageLayerError("a path with .. in a layer", hint="the archive is not an image's")
    if not name:
        raise ImageLayerError("a member without a name")
    if parts:
        check_path(b"/".join(parts))
    return parts


def _node(member: Member) -> Node:
    """Return a new inode for a member that is not a hard link, its content read."""
    if member.type == b"0":
        hasher = hashlib.sha256()
        size = 0
        for piece in member.content():
            hasher.update(piece)
            size += len(piece)
        return Node("file", size=size, sha256=hasher.digest())
    if member.type == b"5":
        return Node("dir", children={})
    if member.type == b"2":
        if not member.link or len(member.link) > limits.LINK_TARGET:
            raise ImageLayerError(f"a symbolic link to {len(member.link)} bytes")
        return Node("link", link=member.link)
    if member.type in {b"3", b"4"}:
        if member.major > MAX_MAJOR or member.minor > MAX_MINOR:
            raise ImageLayerError(f"a device {member.major}:{member.minor}")
        if member.type == b"3" and not member.major and not member.minor:
            return replace(_whiteout(), is_device=True)  # what it is to overlayfs
        kind: Type = "char" if member.type == b"3" else "block"
        return Node(kind, device=(member.major, member.minor), is_device=True)
    if member.type == b"6":
        return Node("fifo")
    raise ImageLayerError(f"a member of type {printable(member.type)}, which engines do not unpack")


def read_layer(members: Iterable[Member]) -> LayerTree:
    """Return the layer that an archive's members make. Raises ImageLayerError, TarError."""
    tree = LayerTree()
    for member in members:
        tree.apply(member)
    return tree


def walk(root: Node) -> Iterator[tuple[bytes, Node]]:
    """Yield the path and node of everything in a tree, in a manifest's order, the root first."""
    yield b".", root
    stack = [_sorted(b"", root)]
    while stack:
        for path, node in stack[-1]:
            yield path, node
            if node.children:
                stack.append(_sorted(path + b"/", node))
                break
        else:
            stack.pop()


def _sorted(prefix: bytes, node: Node) -> Iterator[tuple[bytes, Node]]:
    children = node.children or {}
    return ((prefix + name, children[name]) for name in sorted(children))


Engine = Literal["docker", "containerd", "podman"]
ENGINES: Final[tuple[Engine, ...]] = get_args(Engine)
"""Who unpacks. umoci does as Docker."""


def entries(
    tree: LayerTree,
    engine: Engine = "docker",
    below: Sequence[Mapping[bytes, Entry]] = (),
    *,
    rootless: bool = False,
) -> list[Entry]:
    """Return the manifest of a layer as an engine unpacks it, with root's rights or without.

    ``below`` is the layers under it, bottom to top, as the same engine unpacked them: entries by
    their paths.
    """
    found = []
    for path, node in walk(tree.root):
        if rootless and node.is_device:
            continue
        entry = node.entry(path)
        if engine == "containerd" and not below:
            if node.is_whiteout:
                continue
            entry = replace(entry, xattrs=tuple(x for x in entry.xattrs if x != OPAQUE))
        elif engine == "containerd" and node.is_implied and path != b".":
            lower = next((layer[path] for layer in reversed(below) if path in layer), None)
            if lower is not None and lower.type == "dir":
                own = tuple(item for item in lower.xattrs if item[0] in SECURITY)
                entry = replace(lower, xattrs=own + entry.xattrs)
        elif engine == "podman" and node.kept is not None:
            attributes = canonical([*node.xattrs.items(), (CAPABILITY, node.kept)], node.mode)
            entry = replace(entry, xattrs=attributes)
        found.append(entry)
    return found


def has_devices(tree: LayerTree) -> bool:
    """Whether a layer has nodes of devices."""
    return any(node.is_device for _, node in walk(tree.root))


def may_lack_devices(tree: LayerTree, below: Sequence[Mapping[bytes, Entry]]) -> bool:
    """Whether a layer has nodes of devices, and what is left of the image without them is the same
    but for these: none of them hides anything else of the layers ``below``."""
    devices = [path for path, node in walk(tree.root) if node.is_device]
    hidden = (layer[path].type for layer in below for path in devices if path in layer)
    return bool(devices) and all(kind in {"block", "char"} for kind in hidden)
