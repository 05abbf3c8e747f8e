"""What can be wrong with a TPM, each with what a person does about it.

Source: TPM 2.0 Library Part 2, 6.6 (TPM_RC).
"""

from dataclasses import dataclass

from tpm2_pytss import TSS2_Exception

from cima_runc.tpm.call_timeouts import TpmError


@dataclass(frozen=True)
class Trouble:
    """Something about the TPM that a person must mend."""

    what: str
    hint: str


LOCKOUT = Trouble(
    "the TPM is locked out: too many wrong passwords were tried",
    "wait, or: tpm2_dictionarylockout --clear-lockout",
)
ENDORSEMENT_PASSWORD = Trouble(
    "the TPM's endorsement hierarchy has a password",
    "remove it: tpm2_changeauth -c endorsement -p PASSWORD",
)
ENDORSEMENT_DISABLED = Trouble(
    "the TPM's endorsement hierarchy is disabled",
    "enable it in the firmware; firmware that disables it does so at each start",
)
OWNER_PASSWORD = Trouble(
    "the TPM's owner hierarchy has a password",
    "remove it (tpm2_changeauth -c owner -p PASSWORD), or leave attestation.ak_handle out",
)
OWNER_DISABLED = Trouble(
    "the TPM's owner hierarchy is disabled",
    "enable it in the firmware, or leave attestation.ak_handle out",
)
SLOTS_FULL = Trouble(
    "the TPM has no room for another key or session",
    "use /dev/tpmrm0 (tpm.tcti), or: tpm2_flushcontext --transient-object and --loaded-session",
)
NO_BANK = Trouble(
    "the TPM has no SHA-256 bank", "allocate it in the firmware, or: tpm2_pcrallocate sha256:all"
)


def pcr_not_in_bank(pcr: int) -> Trouble:
    """Return the trouble of a bank without this PCR."""
    return Trouble(
        f"PCR {pcr} is not in the TPM's SHA-256 bank",
        "allocate it in the firmware, or: tpm2_pcrallocate sha256:all",
    )


def pcr_not_extendable(pcr: int) -> Trouble:
    """Return the trouble of a PCR that an operating system may not extend."""
    return Trouble(
        f"PCR {pcr} cannot be extended from locality 0",
        "choose a PCR that can be, between 8 and 15 or 23: tpm.pcr",
    )


_LAYER_BITS = 0xFFFF
_FORMAT_ONE = 0x80
_BY_CODE = {
    0x921: LOCKOUT,  # TPM_RC_LOCKOUT
    0x902: SLOTS_FULL,  # TPM_RC_OBJECT_MEMORY
    0x903: SLOTS_FULL,  # TPM_RC_SESSION_MEMORY
    0x904: SLOTS_FULL,  # TPM_RC_MEMORY
    0x905: SLOTS_FULL,  # TPM_RC_SESSION_HANDLES
    0x906: SLOTS_FULL,  # TPM_RC_OBJECT_HANDLES
    0x907: Trouble(  # TPM_RC_LOCALITY
        "the PCR cannot be extended or reset from locality 0",
        "choose a PCR that can be, between 8 and 15 or 23: tpm.pcr",
    ),
    0x14B: Trouble(  # TPM_RC_NV_SPACE
        "the TPM has no room for a persistent key",
        "remove one (tpm2_evictcontrol), or leave attestation.ak_handle out",
    ),
}
_HIERARCHY = 0x085
_AUTHORISATION = frozenset({0x08E, 0x0A2})
"""TPM_RC_AUTH_FAIL and TPM_RC_BAD_AUTH."""


def cause(error: TSS2_Exception) -> Trouble | None:
    """Return what a response code alone says that a person can mend, or None."""
    code = error.rc & _LAYER_BITS
    if code & _FORMAT_ONE:
        code &= 0x0BF
        if code == _HIERARCHY:
            return ENDORSEMENT_DISABLED
        return ENDORSEMENT_PASSWORD if code in _AUTHORISATION else None
    return _BY_CODE.get(code & 0xFFF)


def refused(what: str, error: TSS2_Exception, hint: str = "") -> TpmError:
    """Return the error of a command that the TPM refused, with the cause where it is known."""
    known = cause(error)
    if known is None:
        return TpmError(f"{what}: {error}", hint=hint)
    return TpmError(f"{what}: {known.what}", hint=known.hint)


def require(what: str, trouble: Trouble | None) -> None:
    """Raise where there is trouble; ``what`` is what cannot be done.

    Raises:
        TpmError: there is.
    """
    if trouble is not None:
        raise TpmError(f"{what}: {trouble.what}", hint=trouble.hint)
