"""The TPM 2.0, as far as binding needs it: random bytes, PCR values, extending.

Source: TPM 2.0 Library Part 3, TPM2_GetRandom, TPM2_PCR_Read, TPM2_PCR_Extend, TPM2_ReadClock.
"""

import os
from collections.abc import Sequence
from typing import Self

from tpm2_pytss import (
    ESAPI,
    ESYS_TR,
    TPM2_ALG,
    TPML_DIGEST_VALUES,
    TPMT_HA,
    TPMU_HA,
    TSS2_Exception,
)

from cima_runc.tpm.call_timeouts import LONG_SECONDS, SHORT_SECONDS, TimedConnection, TpmError
from cima_runc.tpm.trouble import NO_BANK, refused

__all__ = ["DEFAULT_TCTI", "Tpm", "TpmError"]

# tpm2-tss writes its own lines to standard error; what matters comes as a return code.
os.environ.setdefault("TSS2_LOG", "all+NONE")

DEFAULT_TCTI = "device:/dev/tpmrm0"

_PER_READ = 8


class Tpm:
    """An open TPM. Not for several threads at once."""

    def __init__(self, esapi: TimedConnection, tcti: str) -> None:
        self._esapi = esapi
        self._tcti = tcti

    @classmethod
    def open(
        cls, tcti: str, *, short_seconds: float = SHORT_SECONDS, long_seconds: float = LONG_SECONDS
    ) -> Self:
        """Open the TPM that ``tcti`` names, as tpm2-tss writes it.

        ``short_seconds`` is how long it may take to extend or read PCRs and to give random bytes,
        ``long_seconds`` to do anything else.

        Raises:
            TpmError: nothing there that answers.
        """
        if tcti.startswith("device:") and not os.access(tcti.removeprefix("device:"), os.R_OK):
            raise TpmError(
                f"no TPM at {tcti.removeprefix('device:')}",
                hint="turn the TPM 2.0 on in the firmware, or set tpm.tcti",
            )
        try:
            esapi = TimedConnection(lambda: ESAPI(tcti), short=short_seconds, long=long_seconds)
            return cls(esapi, tcti)
        except (TSS2_Exception, RuntimeError) as error:
            raise TpmError(
                f"the TPM at {tcti} does not answer: {error}", hint="check tpm.tcti"
            ) from error

    @property
    def description(self) -> str:
        """How the TPM is reached, with a warning where it is no hardware's own device."""
        note = "" if self._tcti.startswith("device:") else " (simulated, for development only)"
        return self._tcti + note

    @property
    def esapi(self) -> TimedConnection:
        """The connection, for the commands of the other modules here."""
        return self._esapi

    def close(self) -> None:
        """Close the connection."""
        self._esapi.close()

    def random(self, size: int) -> bytes:
        """Return ``size`` random bytes of the TPM's generator.

        Raises:
            TpmError: the TPM answered with an error.
        """
        parts = b""
        try:
            while len(parts) < size:
                parts += bytes(self._esapi.get_random(size - len(parts)))
        except TSS2_Exception as error:
            raise TpmError(f"the TPM gives no random bytes: {error}") from error
        return parts

    def read_pcrs(self, pcrs: Sequence[int]) -> dict[int, bytes]:
        """Return the values (32 bytes each) of these PCRs in the SHA-256 bank.

        Raises:
            TpmError: the TPM answered with an error, or has no such bank.
        """
        values: dict[int, bytes] = {}
        for at in range(0, len(pcrs), _PER_READ):
            some = sorted(set(pcrs[at : at + _PER_READ]))
            selection = "sha256:" + ",".join(str(pcr) for pcr in some)
            try:
                _, _, digests = self._esapi.pcr_read(selection)
            except TSS2_Exception as error:
                raise TpmError(f"the TPM does not show its PCRs: {error}") from error
            if digests.count != len(some):
                raise TpmError(NO_BANK.what, hint=NO_BANK.hint)
            values.update(zip(some, (bytes(digest) for digest in digests), strict=True))
        return values

    def counters(self) -> tuple[int, int]:
        """Return resetCount and restartCount: how often the TPM began anew, and was resumed since.

        Raises:
            TpmError: the TPM answered with an error.
        """
        try:
            clock = self._esapi.read_clock().clockInfo
        except TSS2_Exception as error:
            raise TpmError(f"the TPM does not show its clock: {error}") from error
        return int(clock.resetCount), int(clock.restartCount)

    def extend(self, pcr: int, digest: bytes) -> None:
        """Extend the PCR's SHA-256 bank with ``digest`` (32 bytes).

        Raises:
            TpmError: the TPM answered with an error; the PCR may or may not be extended.
        """
        value = TPMT_HA(hashAlg=TPM2_ALG.SHA256, digest=TPMU_HA(sha256=digest))
        try:
            self._esapi.pcr_extend(ESYS_TR(ESYS_TR.PCR0 + pcr), TPML_DIGEST_VALUES([value]))
        except TSS2_Exception as error:
            raise refused(f"the TPM did not extend PCR {pcr}", error) from error
