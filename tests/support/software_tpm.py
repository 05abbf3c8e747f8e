"""What a TPM would sign, by a key outside of any: thousands of them fit into a process."""

import hashlib
import struct
from dataclasses import dataclass, field

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils

from cima_runc.tpm.structures import ATTEST_QUOTE, GENERATED, Attribute, parse_public
from tests.software_key import software_key

_AK = (
    Attribute.FIXED_TPM
    | Attribute.FIXED_PARENT
    | Attribute.SENSITIVE_DATA_ORIGIN
    | Attribute.RESTRICTED
    | Attribute.SIGN
)


def _sized(data: bytes) -> bytes:
    return struct.pack(">H", len(data)) + data


@dataclass
class SoftwareTpm:
    """A TPM's attestation key, PCRs and counters; all of it is for the test to change."""

    pcrs: dict[int, bytes] = field(default_factory=lambda: dict.fromkeys(range(24), bytes(32)))
    reset_count: int = 1
    restart_count: int = 0
    clock: int = 1_000
    safe: bool = True
    attributes: int = int(_AK)

    def __post_init__(self) -> None:
        self._private, self.ak_public, _ = software_key(self.attributes)
        public = parse_public(self.ak_public)
        self.ak_name = public.name
        self._signer = public.endorsement_qualified_name

    def extend(self, pcr: int, digest: bytes) -> None:
        """Extend a PCR of the SHA-256 bank."""
        self.pcrs[pcr] = hashlib.sha256(self.pcrs[pcr] + digest).digest()

    def quote(self, pcrs: tuple[int, ...], qualifying: bytes) -> tuple[bytes, bytes]:
        """Return TPMS_ATTEST and TPMT_SIGNATURE; a millisecond goes by."""
        self.clock += 1
        select = bytearray(3)
        for pcr in pcrs:
            select[pcr // 8] |= 1 << pcr % 8
        digest = hashlib.sha256(b"".join(self.pcrs[pcr] for pcr in pcrs)).digest()
        attest = struct.pack(">IH", GENERATED, ATTEST_QUOTE)
        attest += _sized(self._signer) + _sized(qualifying)
        attest += struct.pack(
            ">QIIBQ", self.clock, self.reset_count, self.restart_count, self.safe, 1
        )
        attest += struct.pack(">IHB", 1, 0x0B, 3) + bytes(select) + _sized(digest)
        return attest, self.sign(attest)

    def sign(self, data: bytes) -> bytes:
        """Return a TPMT_SIGNATURE of the attestation key."""
        r, s = utils.decode_dss_signature(self._private.sign(data, ec.ECDSA(hashes.SHA256())))
        head = struct.pack(">HH", 0x18, 0x0B)
        return head + _sized(r.to_bytes(32, "big")) + _sized(s.to_bytes(32, "big"))
