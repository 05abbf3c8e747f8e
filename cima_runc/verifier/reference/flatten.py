"""Layers on top of each other, as overlayfs shows them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from cima_runc.measure.mtree import Entry
from cima_runc.measure.xattrs import OVERLAY


@dataclass(slots=True)
class Shown:
    """What is shown at one path, and in it."""

    entry: Entry
    layer: int
    children: dict[bytes, "Shown"] = field(default_factory=dict)


class Flattened:
    """A root filesystem, as layers are put onto it from the bottom up."""

    def __init__(self) -> None:
        self.root = Shown(Entry(b".", "dir"), 0)
        self._layers = 0

    def add(self, layer: Iterable[Entry]) -> None:
        """Put the next layer on top: the entries of its manifest, in order.

        An entry replaces what is below it. Only a directory that is not opaque, over a directory,
        keeps what that one has in it. overlayfs's own attributes are not shown.
        """
        for entry in layer:
            if entry.path == b".":
                if entry.is_opaque:
                    self.root.children.clear()
                continue
            *above, name = entry.path.split(b"/")
            siblings = self.root.children
            for each in above:
                siblings = siblings[each].children
            old = siblings.pop(name, None)
            if entry.is_whiteout:
                continue
            shown = tuple(item for item in entry.xattrs if not item[0].startswith(OVERLAY))
            node = siblings[name] = Shown(replace(entry, xattrs=shown), self._layers)
            if old is not None and {entry.type, old.entry.type} == {"dir"} and not entry.is_opaque:
                node.children = old.children
        self._layers += 1

    def __iter__(self) -> Iterator[tuple[Entry, int]]:
        """Yield every entry but the root, in a manifest's order, with its layer from the bottom."""
        stack = [_sorted(self.root)]
        while stack:
            for node in stack[-1]:
                yield node.entry, node.layer
                if node.children:
                    stack.append(_sorted(node))
                    break
            else:
                stack.pop()


def _sorted(node: Shown) -> Iterator[Shown]:
    return iter([node.children[name] for name in sorted(node.children)])
