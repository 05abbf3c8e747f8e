"""What a quote is qualified with: one request, or the root over many that share the quote.

Source: design, section 7; the tree's shape and the check of a path are those of RFC 9162,
sections 2.1.1 and 2.1.3.2, the hash prefixes are RFC 9162's as well.
"""

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from cima_runc.cpcr.tree import LEAF, node_hash


@dataclass(frozen=True)
class Inclusion:
    """Where a request's leaf is among those that share a quote."""

    index: int
    """Number of the leaf, from 0."""
    size: int
    """How many leaves there are."""
    path: tuple[bytes, ...]
    """The siblings (32 bytes each), lowest first."""


def request_leaf(nonce: bytes, container_id: str) -> bytes:
    """Return SHA256(0x00 || nonce || SHA256(container id in UTF-8)), 32 bytes."""
    named = hashlib.sha256(container_id.encode("utf-8")).digest()
    return hashlib.sha256(LEAF + nonce + named).digest()


def aggregate(leaves: Sequence[bytes]) -> tuple[bytes, list[Inclusion]]:
    """Return the root over ``leaves`` (one or more) and each leaf's place; one leaf is the root."""
    root, paths = _subtree(leaves)
    size = len(leaves)
    return root, [Inclusion(at, size, tuple(path)) for at, path in enumerate(paths)]


def aggregate_among(leaves: Sequence[bytes], places: int) -> tuple[bytes, list[Inclusion]]:
    """Return the same for leaves in random places among ``places``, the others filled at random.

    So no asker sees how many the others are. A leaf that is alone stays alone.
    """
    if len(leaves) == 1:
        return aggregate(leaves)
    own = secrets.SystemRandom().sample(range(places), len(leaves))
    filled = [secrets.token_bytes(32) for _ in range(places)]
    for place, leaf in zip(own, leaves, strict=True):
        filled[place] = leaf
    root, inclusions = aggregate(filled)
    return root, [inclusions[place] for place in own]


def _subtree(leaves: Sequence[bytes]) -> tuple[bytes, list[list[bytes]]]:
    if len(leaves) == 1:
        return leaves[0], [[]]
    # The largest power of two below the number of leaves.
    split = 1 << ((len(leaves) - 1).bit_length() - 1)
    left, left_paths = _subtree(leaves[:split])
    right, right_paths = _subtree(leaves[split:])
    for path in left_paths:
        path.append(right)
    for path in right_paths:
        path.append(left)
    return node_hash(left, right), left_paths + right_paths


def root_of(leaf: bytes, inclusion: Inclusion) -> bytes | None:
    """Return the root that ``leaf`` has at its place, None where there is no such place."""
    if not 0 <= inclusion.index < inclusion.size:
        return None
    at, last = inclusion.index, inclusion.size - 1
    value = leaf
    for sibling in inclusion.path:
        if last == 0:
            return None
        if at & 1 or at == last:
            value = node_hash(sibling, value)
            while not at & 1 and at:
                at >>= 1
                last >>= 1
        else:
            value = node_hash(value, sibling)
        at >>= 1
        last >>= 1
    return value if last == 0 else None
