"""What must be new for each registration: its number and its secret."""

import hashlib
import secrets

from cima_runc.ml.store import Store
from cima_runc.tpm.device import Tpm

_NUMBERS = 1 << 53
"""What JSON holds exactly."""


class Fresh:
    """Numbers and secrets that were never used; for the writer's thread."""

    def __init__(self, store: Store, tpm: Tpm | None) -> None:
        self._store = store
        self._tpm = tpm

    def number(self) -> int:
        """Return a random number for a registration: counted, it would tell of the neighbours'."""
        while (number := secrets.randbelow(_NUMBERS)) == 0 or self._store.holds(number):
            pass
        return number

    def secret(self) -> bytes:
        """Return 32 random bytes, of the TPM's and of the kernel's.

        Raises:
            TpmError: the TPM gives none.
        """
        own = self.own_secret()
        if self._tpm is None:
            return own
        return hashlib.sha256(own + self._tpm.random(32)).digest()

    @staticmethod
    def own_secret() -> bytes:
        """Return 32 random bytes of the kernel's alone."""
        return secrets.token_bytes(32)
