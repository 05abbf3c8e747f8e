"""TPM structures as bytes: strict readers for what comes from a TPM that is not trusted yet.

Pure, and with no TPM library: a verifier needs neither a TPM nor tpm2-tss. Only what an
attestation key can be and a quote can hold is read; everything else is an error, trailing bytes
included. Numbers are big-endian.
Source: TPM 2.0 Library Part 2 (revision 1.59): 10.12 (TPMS_ATTEST), 11.3 (TPMT_SIGNATURE),
12.2 (TPMT_PUBLIC), 8.3 (TPMA_OBJECT); Part 1, section 16 (names).
"""

import hashlib
from dataclasses import dataclass
from enum import IntEnum, IntFlag

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils

from cima_runc.base import limits
from cima_runc.base.errors import CimaError

GENERATED = 0xFF544347
"""TPM_GENERATED_VALUE: begins what a TPM made itself and nothing that it signs for others."""

ATTEST_QUOTE = 0x8018
"""TPM_ST_ATTEST_QUOTE."""

RH_ENDORSEMENT = 0x4000000B
"""TPM_RH_ENDORSEMENT."""


class StructureError(CimaError):
    """The bytes are not the TPM structure that they should be."""


class Alg(IntEnum):
    """TPM_ALG_ID, as far as attestation keys use it."""

    RSA = 0x0001
    SHA256 = 0x000B
    NULL = 0x0010
    RSASSA = 0x0014
    RSAPSS = 0x0016
    ECDSA = 0x0018
    ECC = 0x0023


class Attribute(IntFlag):
    """TPMA_OBJECT."""

    FIXED_TPM = 1 << 1
    FIXED_PARENT = 1 << 4
    SENSITIVE_DATA_ORIGIN = 1 << 5
    RESTRICTED = 1 << 16
    DECRYPT = 1 << 17
    SIGN = 1 << 18


_NIST_P256 = 0x0003


class Reader:
    """Takes a marshalled structure apart, field by field; ``what`` names it in errors."""

    def __init__(self, data: bytes, what: str) -> None:
        if len(data) > limits.TPM_STRUCTURE:
            raise StructureError(f"{what} has more than {limits.TPM_STRUCTURE} bytes")
        self._data = data
        self._at = 0
        self._what = what

    def take(self, size: int) -> bytes:
        """Return the next bytes."""
        if self._at + size > len(self._data):
            raise StructureError(f"{self._what} ends too early")
        self._at += size
        return self._data[self._at - size : self._at]

    def number(self, size: int) -> int:
        """Return the next big-endian number of so many bytes."""
        return int.from_bytes(self.take(size), "big")

    def sized(self) -> bytes:
        """Return the bytes of a TPM2B."""
        return self.take(self.number(2))

    def expect(self, field: str, size: int, expected: int) -> None:
        """Take a number that must be ``expected``. Raises :class:`StructureError`."""
        found = self.number(size)
        if found != expected:
            raise StructureError(
                f"{self._what}: {field} is {found:#x}, expected {expected:#x}",
                hint="cima-runc knows attestation keys of ECC P-256 and RSA with SHA-256",
            )

    def end(self) -> None:
        """Raise :class:`StructureError` unless all was taken."""
        if self._at != len(self._data):
            raise StructureError(f"{self._what} is followed by bytes that do not belong to it")


@dataclass(frozen=True)
class ClockInfo:
    """TPMS_CLOCK_INFO."""

    clock: int
    """Milliseconds that the TPM was powered, u64; never goes back unless the TPM is cleared."""
    reset_count: int
    """TPM Resets since the last clear, u32: one each boot."""
    restart_count: int
    """Resumes and restarts since the last reset, u32."""
    safe: bool
    """Whether no higher ``clock`` can have been reported before."""


@dataclass(frozen=True)
class QuoteBody:
    """A TPMS_ATTEST of the type TPM_ST_ATTEST_QUOTE."""

    qualified_signer: bytes
    """The signing key's qualified name, which shows its hierarchy."""
    extra_data: bytes
    """The qualifyingData that the quote was asked with."""
    clock: ClockInfo
    firmware_version: int
    pcrs: tuple[int, ...]
    """The PCRs that were quoted, ascending; of the SHA-256 bank and no other."""
    pcr_digest: bytes
    """SHA-256 of their values, 32 bytes."""


class NotGeneratedError(StructureError):
    """The structure was not made by a TPM."""


class NotAQuoteError(StructureError):
    """The TPM attests to something, but not to PCR values."""


def parse_quote(data: bytes) -> QuoteBody:
    """Read a marshalled TPMS_ATTEST that must be a quote of the SHA-256 bank.

    Raises:
        NotGeneratedError: it does not begin with TPM_GENERATED_VALUE.
        NotAQuoteError: it is another attestation.
        StructureError: it is anything else, or quotes another bank.
    """
    reader = Reader(data, "the quote")
    magic = reader.number(4)
    if magic != GENERATED:
        raise NotGeneratedError(
            f"the quote begins with {magic:#010x}, expected {GENERATED:#010x}: no TPM made it"
        )
    kind = reader.number(2)
    if kind != ATTEST_QUOTE:
        raise NotAQuoteError(f"the TPM signed a structure {kind:#06x}, not a quote ({0x8018:#x})")
    signer = reader.sized()
    extra = reader.sized()
    clock = ClockInfo(reader.number(8), reader.number(4), reader.number(4), _yes(reader))
    firmware = reader.number(8)
    reader.expect("the number of banks", 4, 1)
    reader.expect("the bank", 2, Alg.SHA256)
    select = reader.take(reader.number(1))
    pcrs = tuple(
        8 * byte + bit for byte, value in enumerate(select) for bit in range(8) if value & 1 << bit
    )
    digest = reader.sized()
    if len(digest) != 32:
        raise StructureError("the quote's PCR digest does not have 32 bytes")
    reader.end()
    return QuoteBody(signer, extra, clock, firmware, pcrs, digest)


def _yes(reader: Reader) -> bool:
    value = reader.number(1)
    if value > 1:
        raise StructureError("the quote: safe is neither yes nor no")
    return bool(value)


@dataclass(frozen=True)
class PublicArea:
    """A TPMT_PUBLIC of a key that signs with SHA-256."""

    data: bytes
    """As the TPM marshalled it."""
    attributes: int
    """TPMA_OBJECT."""
    key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey

    @property
    def name(self) -> bytes:
        """TPM_ALG_SHA256 and SHA-256 of the public area, 34 bytes."""
        return Alg.SHA256.to_bytes(2, "big") + hashlib.sha256(self.data).digest()

    @property
    def endorsement_qualified_name(self) -> bytes:
        """The qualified name of this key as a primary key of the endorsement hierarchy."""
        inner = RH_ENDORSEMENT.to_bytes(4, "big") + self.name
        return Alg.SHA256.to_bytes(2, "big") + hashlib.sha256(inner).digest()

    def missing_attributes(self) -> list[str]:
        """Return what this key lacks to be an attestation key, in TPMA_OBJECT's words.

        Such a key is made by the TPM, cannot leave it, and signs nothing but what the TPM made.
        """
        wanted = {
            "fixedTPM": Attribute.FIXED_TPM,
            "fixedParent": Attribute.FIXED_PARENT,
            "sensitiveDataOrigin": Attribute.SENSITIVE_DATA_ORIGIN,
            "restricted": Attribute.RESTRICTED,
            "sign": Attribute.SIGN,
        }
        missing = [name for name, bit in wanted.items() if not self.attributes & bit]
        return [*missing, "not decrypt"] if self.attributes & Attribute.DECRYPT else missing


def parse_public(data: bytes) -> PublicArea:
    """Read a marshalled TPMT_PUBLIC of an ECC P-256 or RSA (2048 bits or more) signing key.

    Raises:
        StructureError: it is not such a key.
    """
    reader = Reader(data, "the key's public area")
    kind = reader.number(2)
    reader.expect("nameAlg", 2, Alg.SHA256)
    attributes = reader.number(4)
    reader.sized()
    reader.expect("symmetric", 2, Alg.NULL)
    key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey
    if kind == Alg.ECC:
        reader.expect("scheme", 2, Alg.ECDSA)
        reader.expect("scheme's hash", 2, Alg.SHA256)
        reader.expect("curve", 2, _NIST_P256)
        reader.expect("kdf", 2, Alg.NULL)
        x, y = (int.from_bytes(reader.sized(), "big") for _ in range(2))
        reader.end()
        try:
            key = ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key()
        except ValueError as error:
            raise StructureError("the key's public area holds no point of P-256") from error
    elif kind == Alg.RSA:
        scheme = reader.number(2)
        if scheme not in (Alg.RSASSA, Alg.RSAPSS):
            raise StructureError(f"the key's public area: the scheme {scheme:#x} is not known")
        reader.expect("scheme's hash", 2, Alg.SHA256)
        bits = reader.number(2)
        exponent = reader.number(4) or 65537
        modulus = reader.sized()
        reader.end()
        if bits < 2048 or len(modulus) * 8 != bits:
            raise StructureError("the key's public area: RSA needs 2048 bits or more")
        try:
            key = rsa.RSAPublicNumbers(exponent, int.from_bytes(modulus, "big")).public_key()
        except ValueError as error:
            raise StructureError("the key's public area holds no RSA key") from error
    else:
        raise StructureError(f"the key's public area: the type {kind:#06x} is not known")
    return PublicArea(data, attributes, key)


@dataclass(frozen=True)
class Signature:
    """A TPMT_SIGNATURE with SHA-256."""

    algorithm: Alg
    """RSASSA, RSAPSS or ECDSA."""
    value: bytes
    """PKCS #1 bytes, or the DER form of (r, s)."""


def parse_signature(data: bytes) -> Signature:
    """Read a marshalled TPMT_SIGNATURE.

    Raises:
        StructureError: not one, or not with SHA-256.
    """
    reader = Reader(data, "the signature")
    algorithm = reader.number(2)
    if algorithm not in (Alg.RSASSA, Alg.RSAPSS, Alg.ECDSA):
        raise StructureError(f"the signature: the scheme {algorithm:#x} is not known")
    reader.expect("hash", 2, Alg.SHA256)
    if algorithm == Alg.ECDSA:
        r, s = (int.from_bytes(reader.sized(), "big") for _ in range(2))
        value = utils.encode_dss_signature(r, s)
    else:
        value = reader.sized()
    reader.end()
    return Signature(Alg(algorithm), value)


def signed_by(
    key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey, signature: Signature, data: bytes
) -> bool:
    """Whether ``signature`` is this key's over ``data`` (SHA-256)."""
    sha256 = hashes.SHA256()
    try:
        if isinstance(key, ec.EllipticCurvePublicKey):
            if signature.algorithm != Alg.ECDSA:
                return False
            key.verify(signature.value, data, ec.ECDSA(sha256))
        elif signature.algorithm == Alg.RSASSA:
            key.verify(signature.value, data, padding.PKCS1v15(), sha256)
        elif signature.algorithm == Alg.RSAPSS:
            pss = padding.PSS(padding.MGF1(sha256), padding.PSS.AUTO)
            key.verify(signature.value, data, pss, sha256)
        else:
            return False
    except (InvalidSignature, UnsupportedAlgorithm, ValueError):
        return False
    return True
