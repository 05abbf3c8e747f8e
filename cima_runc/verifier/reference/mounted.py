"""What a layer becomes where an engine unpacks it into the mount of the layers below it.

Without root's rights Docker before 27 and containerd do so (their naive way): whatever the archive
removes or replaces they remove in the mount, and overlayfs makes the layer of it. It differs from
what engines write into a layer's own directory:

- A whiteout of what the layers below do not have leaves nothing. An opaque directory becomes one
  whiteout for each name that it hides.
- A directory in the place of something that was removed is opaque. The others that the layers below
  have, too, keep mode, owner and attributes, but for those that the archive sets.

What an archive removes after it has put something in the same place is not modelled; engines write
`.wh.` first. Sources: moby daemon/graphdriver/overlay2 (doesSupportNativeDiff), go-archive diff.go
(UnpackLayer); containerd core/diff/apply/apply_linux.go and pkg/archive (applyNaive);
fs/overlayfs/dir.c (ovl_create_over_whiteout).
"""

from dataclasses import replace

from cima_runc.measure.mtree import Entry, whiteout
from cima_runc.measure.xattrs import OPAQUE, canonical
from cima_runc.verifier.reference.flatten import Flattened, Shown
from cima_runc.verifier.reference.layer import LayerTree, Node


def mounted_entries(tree: LayerTree, below: Flattened) -> list[Entry] | None:
    """Return the manifest of a layer that is unpacked so, without nodes of devices.

    ``below`` is what the same way made of the layers below. None: a directory that the archive does
    not list is no directory there, so that what is in it goes elsewhere, or nowhere.
    """
    found = [Entry(b".", "dir")]
    todo = _inside(b"", tree.root, below.root)
    while todo:
        path, node, under, is_removed = todo.pop()
        if node is None or node.is_whiteout or node.is_device:
            if under is not None:
                found.append(whiteout(path))
        elif node.children is None:
            found.append(node.entry(path))
        elif under is None or is_removed or node.is_anew:
            found.append(_new(path, node, is_over=under is not None))
            todo += _inside(path + b"/", node, None)
        elif under.entry.type == "dir":
            found.append(_merged(path, node, under))
            todo += _inside(path + b"/", node, under)
        elif node.is_implied:
            return None
        else:
            found.append(_new(path, node, is_over=True))
            todo += _inside(path + b"/", node, None)
    return found


def _inside(
    prefix: bytes, node: Node, under: Shown | None
) -> list[tuple[bytes, Node | None, Shown | None, bool]]:
    """Return what a directory of the layer has, or hides, the last first: its path, the layer's
    own, what the layers below have there, and whether that is removed before anything is put."""
    own = node.children or {}
    lower = under.children if under is not None else {}
    names = own.keys() | lower.keys() if node.is_opaque else own.keys()
    return [
        (prefix + name, own.get(name), lower.get(name), node.is_opaque)
        for name in sorted(names, reverse=True)
    ]


def _new(path: bytes, node: Node, *, is_over: bool) -> Entry:
    entry = replace(node, is_opaque=False).entry(path)
    return replace(entry, xattrs=(*entry.xattrs, OPAQUE)) if is_over else entry


def _merged(path: bytes, node: Node, under: Shown) -> Entry:
    if node.is_implied:
        return replace(under.entry, path=path)
    xattrs = canonical({**dict(under.entry.xattrs), **node.xattrs}.items(), node.mode)
    return Entry(path, "dir", node.mode, node.uid, node.gid, xattrs=xattrs)
