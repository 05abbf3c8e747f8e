"""The tree that a tenant's path leads through: anew for every bind, so that no two have a leaf or a
node in common, and nothing in a path tells whether a neighbour has done anything.

Its leaf is SHA256(0x00 || blind || inner), where the blinds are a keystream under a key that nobody
sees. Source: design, section 6; RFC 8439 (ChaCha20).
"""

import hashlib
import secrets

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

from cima_runc.cpcr.register import DIGEST_SIZE
from cima_runc.cpcr.tree import LEAF, NODE

_KEY_SIZE = 32
_START = bytes(16)
"""Block counter 0 and nonce 0: a key is used once."""


def blinded_leaf(blind: bytes, inner: bytes) -> bytes:
    """Return SHA256(0x00 || blind || inner), 32 bytes."""
    return hashlib.sha256(LEAF + blind + inner).digest()


def blinds(key: bytes, slots: int) -> bytes:
    """Return the ChaCha20 keystream under ``key`` (32 bytes): the blinds of ``slots`` slots, 32
    bytes each, in order."""
    return Cipher(ChaCha20(key, _START), None).encryptor().update(bytes(slots * DIGEST_SIZE))


class BlindedTree:
    """One bind's tree over the inner values of all slots."""

    def __init__(self, inners: bytes, key: bytes | None = None) -> None:
        """Make the tree over ``inners``, 32 bytes for each of a power of two of slots.

        ``key`` is random unless given, and does not outlive this call.
        """
        slots = len(inners) // DIGEST_SIZE
        self._blinds = blinds(key or secrets.token_bytes(_KEY_SIZE), slots)
        # Plain slices and one call each: this is most of what a tenant's bind costs.
        sha256, cover, ends = hashlib.sha256, self._blinds, range(0, len(inners), DIGEST_SIZE)
        level = b"".join(
            [
                sha256(LEAF + cover[at : at + DIGEST_SIZE] + inners[at : at + DIGEST_SIZE]).digest()
                for at in ends
            ]
        )
        self._levels = [level]
        while len(level) > DIGEST_SIZE:
            pairs = range(0, len(level), 2 * DIGEST_SIZE)
            level = b"".join(
                [sha256(NODE + level[at : at + 2 * DIGEST_SIZE]).digest() for at in pairs]
            )
            self._levels.append(level)

    @property
    def root(self) -> bytes:
        """The root, 32 bytes."""
        return self._levels[-1]

    def blind(self, slot: int) -> bytes:
        """Return what covers ``slot``, 32 bytes: for the register's owner only."""
        return _at(self._blinds, slot)

    def leaf(self, slot: int) -> bytes:
        """Return the leaf of ``slot``, 32 bytes."""
        return _at(self._levels[0], slot)

    def path(self, slot: int) -> tuple[bytes, ...]:
        """Return the siblings from ``slot`` up to below the root, lowest first, 32 bytes each."""
        return tuple(
            _at(level, slot >> height ^ 1) for height, level in enumerate(self._levels[:-1])
        )


def _at(values: bytes, index: int) -> bytes:
    return values[index * DIGEST_SIZE : (index + 1) * DIGEST_SIZE]
