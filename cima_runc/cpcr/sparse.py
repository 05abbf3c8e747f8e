"""A table of registers as a verifier keeps it: what is in its slots, most of which are empty.

The host's own is :mod:`cima_runc.cpcr.table`; both have the same root. Costs what is filled.
Source: design, section 6; fleet, section 3.
"""

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property

from cima_runc.cpcr.inner import EMPTY
from cima_runc.cpcr.register import DIGEST_SIZE
from cima_runc.cpcr.table import table_leaf
from cima_runc.cpcr.tree import node_hash

_SLOTS = struct.Struct(">I")
_ENTRY = struct.Struct(f">I{DIGEST_SIZE}s")


@dataclass(frozen=True)
class SparseTable:
    """A power of two of slots, and what is in those that are not empty."""

    slots: int
    inners: Mapping[int, bytes]
    """By slot; none is 32 zero bytes."""

    def __post_init__(self) -> None:
        if self.slots < 1 or self.slots & (self.slots - 1):
            raise ValueError("a table has a power of two of slots")
        if any(not 0 <= slot < self.slots for slot in self.inners):
            raise ValueError("the table has no such slot")

    @classmethod
    def empty(cls, slots: int) -> "SparseTable":
        """Return a table with nothing in it."""
        return cls(slots, {})

    def inner(self, slot: int) -> bytes:
        """Return what is in ``slot``, 32 bytes."""
        return self.inners.get(slot, EMPTY)

    def changed(self, slots: int, changes: Iterable[tuple[int, bytes]]) -> "SparseTable":
        """Return the table with so many slots, and ``changes`` (slot, 32 bytes) made.

        Raises:
            ValueError: fewer slots than before, no power of two, or a slot that there is not.
        """
        if slots < self.slots:
            raise ValueError("a table never has fewer slots than before")
        inners = {**self.inners, **dict(changes)}
        filled = {slot: inner for slot, inner in inners.items() if inner != EMPTY}
        return SparseTable(slots, filled)

    @cached_property
    def digest(self) -> bytes:
        """The root, 32 bytes."""
        level = {slot: table_leaf(inner) for slot, inner in self.inners.items()}
        depth = self.slots.bit_length() - 1
        for height in range(depth):
            other = _empty_node(height)
            level = {
                at: node_hash(level.get(2 * at, other), level.get(2 * at + 1, other))
                for at in {slot >> 1 for slot in level}
            }
        return level.get(0, _empty_node(depth))

    def to_bytes(self) -> bytes:
        """Return the table for storing: u32 slots, then (u32 slot, 32 bytes) of what is filled, in
        order; big-endian."""
        return _SLOTS.pack(self.slots) + b"".join(
            _ENTRY.pack(slot, inner) for slot, inner in sorted(self.inners.items())
        )

    @classmethod
    def from_bytes(cls, raw: bytes) -> "SparseTable":
        """Read what :meth:`to_bytes` gave.

        Raises:
            ValueError: it is not that.
        """
        try:
            (slots,) = _SLOTS.unpack_from(raw)
            found = dict(_ENTRY.iter_unpack(raw[_SLOTS.size :]))
        except struct.error as error:
            raise ValueError("not a stored table") from error
        return cls(slots, found)


@cache
def _empty_node(height: int) -> bytes:
    """Return the node over 2^height empty slots."""
    if height == 0:
        return table_leaf(EMPTY)
    below = _empty_node(height - 1)
    return node_hash(below, below)
