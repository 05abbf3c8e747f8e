"""Quotes: what the TPM says of its PCRs, and of its clock, signed by the attestation key.

Source: TPM 2.0 Library Part 3, TPM2_Quote.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from tpm2_pytss import TSS2_Exception

from cima_runc.tpm.device import Tpm
from cima_runc.tpm.keys import AttestationKey
from cima_runc.tpm.structures import QuoteBody, parse_quote
from cima_runc.tpm.trouble import refused


@dataclass(frozen=True)
class Quote:
    """A quote of the SHA-256 bank."""

    attest: bytes
    """TPMS_ATTEST, as signed."""
    signature: bytes
    """TPMT_SIGNATURE."""

    @property
    def body(self) -> QuoteBody:
        """What was signed, read."""
        return parse_quote(self.attest)


def quote(tpm: Tpm, key: AttestationKey, pcrs: Iterable[int], qualifying: bytes) -> Quote:
    """Have the TPM sign the values of ``pcrs`` with ``qualifying`` (at most 32 bytes).

    Raises:
        TpmError: the TPM refuses.
    """
    selection = "sha256:" + ",".join(str(pcr) for pcr in sorted(set(pcrs)))
    try:
        attest, signature = tpm.esapi.quote(key.handle, selection, qualifying)
    except TSS2_Exception as error:
        raise refused("the TPM does not quote", error) from error
    return Quote(bytes(attest), signature.marshal())
