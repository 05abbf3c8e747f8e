"""The table of all registers, which the host's own verifier knows: kept up change by change.

A binary hash tree over a power of two of slots, over SHA256(0x04 || inner). Each register is in a
random slot, all other slots are empty. A change costs one hash a level. To everybody else the table
shows only as ``host``, which a fresh key makes 32 random bytes.
Source: design, section 6; fleet, section 3.
"""

import hashlib
import secrets
from collections.abc import Iterator

from cima_runc.cpcr.inner import EMPTY
from cima_runc.cpcr.register import DIGEST_SIZE
from cima_runc.cpcr.tree import NODE, node_hash

MINIMUM_SLOTS = 1 << 10
"""Slots of a new table at least."""

_LEAF = b"\x04"
_HOST = b"\x05"
_SPARSE = 8
"""A random slot is drawn again where it is taken, while at least one of so many is free."""


def table_leaf(inner: bytes) -> bytes:
    """Return SHA256(0x04 || inner), 32 bytes."""
    return hashlib.sha256(_LEAF + inner).digest()


def host_digest(hostkey: bytes, table: bytes) -> bytes:
    """Return SHA256(0x05 || hostkey || table): what a bind holds of the table, 32 bytes."""
    return hashlib.sha256(_HOST + hostkey + table).digest()


class Table:
    """The slots, what is in them, and every node above, lowest level first.

    Not for several threads at once.
    """

    def __init__(self, slots: int = MINIMUM_SLOTS) -> None:
        """Begin with ``slots`` empty slots.

        Raises:
            ValueError: not a power of two, or less than :data:`MINIMUM_SLOTS`.
        """
        if slots < MINIMUM_SLOTS or slots & (slots - 1):
            raise ValueError(f"a table has a power of two of slots, {MINIMUM_SLOTS} at least")
        self._taken: set[int] = set()
        self._inners = bytearray(slots * DIGEST_SIZE)
        self._mark = 0
        self._marks: dict[int, int] = {}
        """The mark after each slot's last change, in the order of these changes."""
        self._levels = _empty_levels(slots)

    @property
    def slots(self) -> int:
        """How many slots there are, taken or not."""
        return len(self._inners) // DIGEST_SIZE

    @property
    def digest(self) -> bytes:
        """The root, 32 bytes."""
        return bytes(self._levels[-1])

    @property
    def inners(self) -> bytes:
        """What is in the slots, 32 bytes each, in order."""
        return bytes(self._inners)

    def inner(self, slot: int) -> bytes:
        """Return what is in ``slot``, 32 bytes."""
        return bytes(self._inners[slot * DIGEST_SIZE : (slot + 1) * DIGEST_SIZE])

    @property
    def mark(self) -> int:
        """A number for the table as it is now, for :meth:`changes`."""
        return self._mark

    def changes(self, since: int) -> list[tuple[int, bytes]]:
        """Return the slots that were written after the mark ``since``, lowest first, and what is in
        them. Costs what has changed."""
        slots = []
        for slot, mark in reversed(self._marks.items()):
            if mark <= since:
                break
            slots.append(slot)
        return [(slot, self.inner(slot)) for slot in sorted(slots)]

    def filled(self) -> Iterator[tuple[int, bytes]]:
        """Yield (slot, what is in it) for every slot that is not empty, in order."""
        for slot in sorted(self._taken):
            if (value := self.inner(slot)) != EMPTY:
                yield slot, value

    def take(self, slot: int | None = None) -> int:
        """Take a random free slot, or ``slot`` itself, and return it; doubles when full.

        Raises:
            ValueError: ``slot`` is taken already.
        """
        if slot is None:
            slot = self._random_free()
        else:
            while slot >= self.slots:
                self._double()
            if slot in self._taken:
                raise ValueError(f"slot {slot} is taken")
        self._taken.add(slot)
        return slot

    def free(self, slot: int) -> None:
        """Give a slot back; from now on it is empty."""
        self._taken.remove(slot)
        self._set(slot, EMPTY)

    def set(self, slot: int, inner: bytes) -> None:
        """Put ``inner`` (32 bytes) into a taken slot.

        Raises:
            ValueError: nobody has taken the slot.
        """
        if slot not in self._taken:
            raise ValueError(f"slot {slot} is not taken")
        self._set(slot, inner)

    def _random_free(self) -> int:
        if len(self._taken) == self.slots:
            self._double()
        if (self.slots - len(self._taken)) * _SPARSE > self.slots:
            while (slot := secrets.randbelow(self.slots)) in self._taken:
                pass
            return slot
        return secrets.choice([slot for slot in range(self.slots) if slot not in self._taken])

    def _set(self, slot: int, inner: bytes) -> None:
        self._inners[slot * DIGEST_SIZE : (slot + 1) * DIGEST_SIZE] = inner
        self._mark += 1
        self._marks.pop(slot, None)
        self._marks[slot] = self._mark
        value = table_leaf(inner)
        for level, above in zip(self._levels, self._levels[1:], strict=False):
            at = slot * DIGEST_SIZE
            level[at : at + DIGEST_SIZE] = value
            left = (slot & ~1) * DIGEST_SIZE
            value = hashlib.sha256(NODE + level[left : left + 2 * DIGEST_SIZE]).digest()
            slot >>= 1
            above[slot * DIGEST_SIZE : (slot + 1) * DIGEST_SIZE] = value

    def _double(self) -> None:
        right = _empty_levels(self.slots)
        top = node_hash(bytes(self._levels[-1]), bytes(right[-1]))
        for level, more in zip(self._levels, right, strict=True):
            level.extend(more)
        self._levels.append(bytearray(top))
        self._inners.extend(bytes(len(self._inners)))


def _empty_levels(slots: int) -> list[bytearray]:
    """Return the levels over empty slots: all nodes of a level are the same."""
    value = table_leaf(EMPTY)
    levels = [bytearray(value * slots)]
    while slots > 1:
        slots //= 2
        value = node_hash(value, value)
        levels.append(bytearray(value * slots))
    return levels
