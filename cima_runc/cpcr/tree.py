"""What the hash trees here have in common: their nodes, and how a leaf leads to the root.

Source: design, section 6; the prefixes that tell leaves from nodes are RFC 9162's, section 2.1.1.
"""

import hashlib
from collections.abc import Sequence

LEAF = b"\x00"
NODE = b"\x01"


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return SHA256(0x01 || left || right), 32 bytes."""
    return hashlib.sha256(NODE + left + right).digest()


def root_from_path(leaf: bytes, slot: int, path: Sequence[bytes]) -> bytes:
    """Return the root that ``leaf`` in ``slot`` has with its siblings ``path``, lowest first.

    Raises:
        ValueError: the tree has no such slot.
    """
    if not 0 <= slot < 1 << len(path):
        raise ValueError(f"slot {slot} is not in a tree of {1 << len(path)} slots")
    value = leaf
    for sibling in path:
        value = node_hash(sibling, value) if slot & 1 else node_hash(value, sibling)
        slot >>= 1
    return value
