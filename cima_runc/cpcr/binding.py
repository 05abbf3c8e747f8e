"""How the tree's root gets into the binding PCR, and what its value must then be.

Source: design, section 6.
"""

import hashlib
from dataclasses import dataclass

from cima_runc.cpcr.register import extend

_PREFIX = b"cima-bind-v1\0"


def bind_digest(seq: int, root: bytes) -> bytes:
    """Return SHA256("cima-bind-v1" NUL || u64be(seq) || root): what the PCR is extended with."""
    return hashlib.sha256(_PREFIX + seq.to_bytes(8, "big") + root).digest()


@dataclass(frozen=True)
class Bind:
    """One extension of the binding PCR (SHA-256 bank)."""

    seq: int
    """Number of the bind, u64, one more than the one before."""
    root: bytes
    """The tree's root that was bound."""
    history: bytes
    """The PCR's value before."""

    @property
    def digest(self) -> bytes:
        """What the PCR is extended with."""
        return bind_digest(self.seq, self.root)

    @property
    def expected(self) -> bytes:
        """The PCR's value after."""
        return extend(self.history, self.digest)
