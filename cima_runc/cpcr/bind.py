"""A bind: how the registers get into the binding PCR, and what its value must then be.

Source: design, section 6.
"""

import hashlib
from dataclasses import dataclass

from cima_runc.cpcr.register import DIGEST_SIZE, extend

_PREFIX = b"cima-bind-v2\0"

NO_ROOT = bytes(DIGEST_SIZE)
"""In place of the blinded tree's root, in a bind that is not for a tenant's quote."""


def bind_digest(status: bytes, host: bytes, root: bytes) -> bytes:
    """Return SHA256("cima-bind-v2" NUL || status || host || root): what the PCR is extended with.

    All three are 32 bytes: the status object's digest, the covered table, the blinded tree's root.
    """
    if not len(status) == len(host) == len(root) == DIGEST_SIZE:
        raise ValueError("status, host and root have 32 bytes each")
    return hashlib.sha256(_PREFIX + status + host + root).digest()


@dataclass(frozen=True)
class Bind:
    """One or two extensions of the binding PCR (SHA-256 bank)."""

    before: bytes
    """The PCR's value before."""
    digest: bytes
    """What the PCR is extended with, :func:`bind_digest`."""
    veil: bytes | None = None
    """32 random bytes that it is extended with before that, for a tenant's quote: without them
    the history would be an old value of the PCR exactly when nothing had been bound in between."""

    @property
    def history(self) -> bytes:
        """The PCR's value when ``digest`` comes: after the veil, where there is one."""
        return self.before if self.veil is None else extend(self.before, self.veil)

    @property
    def expected(self) -> bytes:
        """The PCR's value after all of it."""
        return extend(self.history, self.digest)
