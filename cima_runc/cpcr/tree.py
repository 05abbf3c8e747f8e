"""The tree that binds every container's register into one root and shows none of them.

A binary hash tree over a power of two of slots. A container's leaf sits in a random slot; every
other slot holds 32 random bytes, which nobody without the container's secret can tell from a leaf,
so neither the root nor a path shows how many containers there are.
Source: design, section 6.
"""

import hashlib
import hmac
import secrets
from collections.abc import Callable, Sequence

from cima_runc.cpcr.register import DIGEST_SIZE

MINIMUM_SLOTS = 1 << 10
"""Slots of a new tree."""

LEAF = b"\x00"
NODE = b"\x01"


def leaf_hash(secret: bytes, cpcr: bytes, count: int) -> bytes:
    """Return SHA256(0x00 || HMAC-SHA256(secret, cpcr || u64be(count))), 32 bytes."""
    masked = hmac.digest(secret, cpcr + count.to_bytes(8, "big"), "sha256")
    return hashlib.sha256(LEAF + masked).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return SHA256(0x01 || left || right), 32 bytes."""
    return hashlib.sha256(NODE + left + right).digest()


def root_from_path(leaf: bytes, slot: int, path: Sequence[bytes]) -> bytes:
    """Return the root that ``leaf`` in ``slot`` has with its siblings ``path``, lowest first."""
    if not 0 <= slot < 1 << len(path):
        raise ValueError(f"slot {slot} is not in a tree of {1 << len(path)} slots")
    value = leaf
    for sibling in path:
        value = node_hash(sibling, value) if slot & 1 else node_hash(value, sibling)
        slot >>= 1
    return value


class Tree:
    """The slots and every node above them, lowest level first; the last level is the root.

    A change costs one hash a level. ``random`` gives that many random bytes.
    """

    def __init__(
        self,
        slots: int = MINIMUM_SLOTS,
        random: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        if slots < 2 or slots & (slots - 1):
            raise ValueError("the number of slots is a power of two")
        self._random = random
        self._taken: set[int] = set()
        self._levels = _levels_over(random(slots * DIGEST_SIZE))

    @property
    def slots(self) -> int:
        """How many slots there are, taken or not."""
        return len(self._levels[0]) // DIGEST_SIZE

    @property
    def root(self) -> bytes:
        """The root, 32 bytes."""
        return bytes(self._levels[-1])

    def take(self, slot: int | None = None) -> int:
        """Take a random free slot, or ``slot`` itself, and return its number; doubles when full.

        Raises:
            ValueError: ``slot`` is taken already.
        """
        if slot is not None:
            while slot >= self.slots:
                self._double()
            if slot in self._taken:
                raise ValueError(f"slot {slot} is taken")
        else:
            if len(self._taken) == self.slots:
                self._double()
            free = self.slots - len(self._taken)
            if free * 8 > self.slots:
                slot = secrets.randbelow(self.slots)
                while slot in self._taken:
                    slot = secrets.randbelow(self.slots)
            else:
                slot = secrets.choice([s for s in range(self.slots) if s not in self._taken])
        self._taken.add(slot)
        return slot

    def free(self, slot: int) -> None:
        """Give a slot back; from now on it holds random bytes."""
        self._taken.remove(slot)
        self._set(slot, self._random(DIGEST_SIZE))

    def set(self, slot: int, leaf: bytes) -> None:
        """Put ``leaf`` (32 bytes) into a taken slot."""
        if slot not in self._taken:
            raise ValueError(f"slot {slot} is not taken")
        self._set(slot, leaf)

    def path(self, slot: int) -> list[bytes]:
        """Return the siblings from ``slot`` up to below the root, lowest first."""
        siblings = []
        for level in self._levels[:-1]:
            at = (slot ^ 1) * DIGEST_SIZE
            siblings.append(bytes(level[at : at + DIGEST_SIZE]))
            slot >>= 1
        return siblings

    def _set(self, slot: int, value: bytes) -> None:
        for level, above in zip(self._levels, self._levels[1:], strict=False):
            at = slot * DIGEST_SIZE
            level[at : at + DIGEST_SIZE] = value
            left = (slot & ~1) * DIGEST_SIZE
            value = hashlib.sha256(NODE + level[left : left + 2 * DIGEST_SIZE]).digest()
            slot >>= 1
            above[slot * DIGEST_SIZE : (slot + 1) * DIGEST_SIZE] = value

    def _double(self) -> None:
        right = _levels_over(self._random(len(self._levels[0])))
        for level, more in zip(self._levels, right, strict=True):
            level.extend(more)
        top = self._levels[-1]
        self._levels.append(
            bytearray(node_hash(bytes(top[:DIGEST_SIZE]), bytes(top[DIGEST_SIZE:])))
        )


def _levels_over(lowest: bytes) -> list[bytearray]:
    levels = [bytearray(lowest)]
    while len(levels[-1]) > DIGEST_SIZE:
        below = levels[-1]
        levels.append(
            bytearray(
                b"".join(
                    hashlib.sha256(NODE + below[at : at + 2 * DIGEST_SIZE]).digest()
                    for at in range(0, len(below), 2 * DIGEST_SIZE)
                )
            )
        )
    return levels
