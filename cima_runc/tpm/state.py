"""What the TPM says of itself that decides whether it can do what the agent needs.

All of it is asked with TPM2_GetCapability, which takes no authorisation and changes nothing.
Source: TPM 2.0 Library Part 2, 6.13 (TPM_PT, TPM_PT_PCR), 8.6 (TPMA_PERMANENT), 8.7
(TPMA_STARTUP_CLEAR); Part 3, 30.2 (TPM2_GetCapability); Part 1, 17.8 (dictionary attacks).
"""

from dataclasses import dataclass
from enum import IntFlag

from tpm2_pytss import TPM2_ALG, TPM2_CAP, TPM2_PT, TPM2_PT_PCR, TSS2_Exception

from cima_runc.tpm.device import Tpm, TpmError
from cima_runc.tpm.trouble import (
    ENDORSEMENT_DISABLED,
    ENDORSEMENT_PASSWORD,
    NO_BANK,
    OWNER_DISABLED,
    OWNER_PASSWORD,
    Trouble,
    pcr_not_extendable,
    pcr_not_in_bank,
)

_CAPABILITY_COUNT = 254


class Permanent(IntFlag):
    """TPMA_PERMANENT."""

    OWNER_AUTH_SET = 1 << 0
    ENDORSEMENT_AUTH_SET = 1 << 1
    IN_LOCKOUT = 1 << 9


class StartupClear(IntFlag):
    """TPMA_STARTUP_CLEAR."""

    OWNER_ENABLED = 1 << 1
    ENDORSEMENT_ENABLED = 1 << 2


@dataclass(frozen=True)
class TpmState:
    """The TPM's state at one moment."""

    permanent: Permanent
    startup_clear: StartupClear
    lockout_counter: int
    """Failed authorisations that count towards the lockout."""
    banks: dict[int, frozenset[int]]
    """The PCRs of each bank (TPM_ALG_ID) that has any."""
    extendable: frozenset[int] | None
    """The PCRs that locality 0 may extend; None where the TPM does not say."""

    @property
    def locked_out(self) -> bool:
        """Whether the TPM refuses every password that dictionary attacks could be after."""
        return bool(self.permanent & Permanent.IN_LOCKOUT)

    def endorsement(self) -> Trouble | None:
        """Return why no key can be made under the endorsement hierarchy."""
        if not self.startup_clear & StartupClear.ENDORSEMENT_ENABLED:
            return ENDORSEMENT_DISABLED
        return ENDORSEMENT_PASSWORD if self.permanent & Permanent.ENDORSEMENT_AUTH_SET else None

    def owner(self) -> Trouble | None:
        """Return why nothing can be kept under the owner hierarchy."""
        if not self.startup_clear & StartupClear.OWNER_ENABLED:
            return OWNER_DISABLED
        return OWNER_PASSWORD if self.permanent & Permanent.OWNER_AUTH_SET else None

    def binding(self, pcr: int) -> Trouble | None:
        """Return why records cannot be bound into this PCR of the SHA-256 bank."""
        bank = self.banks.get(TPM2_ALG.SHA256)
        if not bank:
            return NO_BANK
        if pcr not in bank:
            return pcr_not_in_bank(pcr)
        if self.extendable is not None and pcr not in self.extendable:
            return pcr_not_extendable(pcr)
        return None


def read_state(tpm: Tpm) -> TpmState:
    """Ask the TPM for its state.

    Raises:
        TpmError: it does not answer.
    """
    try:
        properties = _properties(tpm)
        return TpmState(
            permanent=Permanent(properties.get(TPM2_PT.PERMANENT, 0)),
            startup_clear=StartupClear(properties.get(TPM2_PT.STARTUP_CLEAR, 0)),
            lockout_counter=properties.get(TPM2_PT.LOCKOUT_COUNTER, 0),
            banks=_banks(tpm),
            extendable=_extendable(tpm),
        )
    except TSS2_Exception as error:
        raise TpmError(f"the TPM does not tell its state: {error}") from error


def _properties(tpm: Tpm) -> dict[int, int]:
    found: dict[int, int] = {}
    first = int(TPM2_PT.PERMANENT)
    while True:
        more, data = tpm.esapi.get_capability(TPM2_CAP.TPM_PROPERTIES, first, _CAPABILITY_COUNT)
        some = {int(one.property): int(one.value) for one in data.data.tpmProperties}
        found |= some
        if not more or not some:
            return found
        first = max(some) + 1


def _banks(tpm: Tpm) -> dict[int, frozenset[int]]:
    _, data = tpm.esapi.get_capability(TPM2_CAP.PCRS, 0, _CAPABILITY_COUNT)
    banks = {
        int(bank.hash): _selected(bytes(bank.pcrSelect)[: bank.sizeofSelect])
        for bank in data.data.assignedPCR
    }
    return {algorithm: pcrs for algorithm, pcrs in banks.items() if pcrs}


def _extendable(tpm: Tpm) -> frozenset[int] | None:
    wanted = int(TPM2_PT_PCR.EXTEND_L0)
    _, data = tpm.esapi.get_capability(TPM2_CAP.PCR_PROPERTIES, wanted, 1)
    for one in data.data.pcrProperties:
        if int(one.tag) == wanted:
            return _selected(bytes(one.pcrSelect)[: one.sizeofSelect])
    return None


def _selected(bits: bytes) -> frozenset[int]:
    return frozenset(
        8 * byte + bit for byte, value in enumerate(bits) for bit in range(8) if value & 1 << bit
    )
