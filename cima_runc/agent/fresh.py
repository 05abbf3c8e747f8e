"""What must be new for each registration: its number and its secret."""

import hashlib
import secrets
import time

from cima_runc.ml.store import Store
from cima_runc.tpm.device import Tpm

_SHARED_NUMBERS = 1 << 32
"""Partitions that containers share have random numbers below this, which do not tell when the first
of the containers was started."""


class Fresh:
    """Numbers and secrets that were never used; for the writer's thread."""

    def __init__(self, store: Store, tpm: Tpm | None) -> None:
        self._store = store
        self._tpm = tpm
        self._number = max(store.registrations(), default=0)

    def number(self) -> int:
        """Return the time (microseconds since 1970): numbers grow, and count nobody's containers.

        Were they counted, or had gaps of any distribution, two of an owner's would tell how many
        of others' came between. Below 2^53, so that JSON holds them.
        """
        self._number = max(self._number + 1, time.time_ns() // 1000)
        return self._number

    def shared_number(self) -> int:
        """Return a random number for a partition that containers share."""
        taken = {*self._store.registrations(), 0}
        while (number := secrets.randbelow(_SHARED_NUMBERS)) in taken:
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
