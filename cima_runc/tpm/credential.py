"""TPM2_MakeCredential in software: the verifier has no TPM, and needs none.

A secret is encrypted so that only the TPM with a certain endorsement key gives it back, and only
if it holds a key with a certain name (:mod:`cima_runc.tpm.activation` is that side).
Source: TPM 2.0 Library Part 1, sections 11.4.10 (KDFa, KDFe) and 24 (credential protection),
annexes B.10.4 and C.6.4 (secret sharing with RSA and ECC).
"""

import hashlib
import hmac
import secrets
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

try:
    from cryptography.hazmat.decrepit.ciphers.modes import CFB
except ImportError:  # cryptography before 47
    from cryptography.hazmat.primitives.ciphers.modes import CFB

from cima_runc.base.errors import CimaError
from cima_runc.tpm.structures import Alg, Reader, StructureError

_AES: Final = 0x0006
_CFB: Final = 0x0043
_HASHES: Final[dict[int, hashes.HashAlgorithm]] = {
    0x000B: hashes.SHA256(),
    0x000C: hashes.SHA384(),
    0x000D: hashes.SHA512(),
}
_CURVES: Final[dict[int, ec.EllipticCurve]] = {
    0x0003: ec.SECP256R1(),
    0x0004: ec.SECP384R1(),
    0x0005: ec.SECP521R1(),
}


class CredentialError(CimaError):
    """A credential cannot be made for this endorsement key, or not be read."""


@dataclass(frozen=True)
class Credential:
    """What TPM2_MakeCredential gives."""

    blob: bytes
    """TPM2B_ID_OBJECT, without its size."""
    secret: bytes
    """TPM2B_ENCRYPTED_SECRET, without its size."""


@dataclass(frozen=True)
class _StorageKey:
    """A restricted decryption key, as endorsement keys are."""

    hash: hashes.HashAlgorithm
    """Of its name, and so of all that is derived."""
    symmetric_bits: int
    """Of AES in CFB mode; 0 for a key that nothing can be encrypted under."""
    key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey


def ek_public_pem(public: bytes) -> bytes:
    """Return an endorsement key's TPMT_PUBLIC as PEM (SubjectPublicKeyInfo).

    Raises:
        CredentialError: not the public area of an RSA or ECC key.
    """
    return _storage_key(public).key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def ek_key_digest(public: bytes) -> bytes:
    """Return SHA-256 over an endorsement key itself (DER of SubjectPublicKeyInfo), 32 bytes.

    Of the rest of its TPMT_PUBLIC, attributes and policy, nothing proves that they are the TPM's:
    a credential is opened whatever they say.

    Raises:
        CredentialError: not the public area of an RSA or ECC key.
    """
    der = _storage_key(public).key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return hashlib.sha256(der).digest()


def make_credential(ek_public: bytes, ak_name: bytes, secret: bytes) -> Credential:
    """Encrypt ``secret`` to the EK, for a TPM that holds a key ``ak_name``.

    ``ek_public`` is a TPMT_PUBLIC; ``secret`` has no more bytes than the hash of its name.

    Raises:
        CredentialError: not the public area of a key that can be encrypted to.
    """
    key = _storage_key(ek_public)
    if not key.symmetric_bits:
        raise CredentialError(
            "the endorsement key takes no credential: it is no storage key with AES",
            hint="its template is not one of the EK Credential Profile",
        )
    if len(secret) > key.hash.digest_size:
        raise CredentialError(f"the secret has more than {key.hash.digest_size} bytes")
    seed, encrypted = _share_seed(key)
    wrapping = _kdfa(key.hash, seed, b"STORAGE", ak_name, key.symmetric_bits)
    # A new key for each credential: the initialisation vector is zero.
    encryptor = Cipher(algorithms.AES(wrapping), CFB(bytes(16))).encryptor()
    identity = encryptor.update(_sized(secret)) + encryptor.finalize()
    integrity = _kdfa(key.hash, seed, b"INTEGRITY", b"", key.hash.digest_size * 8)
    outer = hmac.digest(integrity, identity + ak_name, key.hash.name)
    return Credential(_sized(outer) + identity, encrypted)


def _share_seed(key: _StorageKey) -> tuple[bytes, bytes]:
    """Return a seed, and what lets the holder of the key have it too."""
    if isinstance(key.key, rsa.RSAPublicKey):
        seed = secrets.token_bytes(key.hash.digest_size)
        oaep = padding.OAEP(padding.MGF1(key.hash), key.hash, b"IDENTITY\0")
        return seed, key.key.encrypt(seed, oaep)
    ephemeral = ec.generate_private_key(key.key.curve)
    shared = ephemeral.exchange(ec.ECDH(), key.key)
    size = (key.key.curve.key_size + 7) // 8
    ours, theirs = ephemeral.public_key().public_numbers(), key.key.public_numbers()
    x, y = ours.x.to_bytes(size, "big"), ours.y.to_bytes(size, "big")
    seed = _kdfe(key.hash, shared, b"IDENTITY", x, theirs.x.to_bytes(size, "big"))
    return seed, _sized(x) + _sized(y)


def _kdfa(
    algorithm: hashes.HashAlgorithm, key: bytes, label: bytes, context: bytes, bits: int
) -> bytes:
    """Return ``bits`` (a multiple of 8) by KDFa; no context of a second party."""

    def block(counter: int) -> bytes:
        text = struct.pack(">I", counter) + label + b"\0" + context + struct.pack(">I", bits)
        return hmac.digest(key, text, algorithm.name)

    return _blocks(block, algorithm.digest_size, bits // 8)


def _kdfe(
    algorithm: hashes.HashAlgorithm, shared: bytes, label: bytes, ours: bytes, theirs: bytes
) -> bytes:
    """Return as many bytes as the hash has, by KDFe (SP 800-56A)."""

    def block(counter: int) -> bytes:
        text = struct.pack(">I", counter) + shared + label + b"\0" + ours + theirs
        return hashlib.new(algorithm.name, text).digest()

    return _blocks(block, algorithm.digest_size, algorithm.digest_size)


def _blocks(block: Callable[[int], bytes], size: int, wanted: int) -> bytes:
    return b"".join(block(counter) for counter in range(1, -(-wanted // size) + 1))[:wanted]


def _sized(value: bytes) -> bytes:
    return struct.pack(">H", len(value)) + value


def _storage_key(public: bytes) -> _StorageKey:
    try:
        return _parse(Reader(public, "the endorsement key's public area"))
    except (StructureError, ValueError) as error:
        raise CredentialError(
            f"the endorsement key's public area is not that of an RSA or ECC key: {error}"
        ) from error


def _parse(reader: Reader) -> _StorageKey:
    """Read a TPMT_PUBLIC of a storage key (Part 2, section 12.2.4)."""
    kind = reader.number(2)
    algorithm = _HASHES.get(reader.number(2))
    reader.number(4)
    reader.sized()
    if algorithm is None:
        raise StructureError("its name has a hash that is not SHA-256, SHA-384 or SHA-512")
    bits = 0
    if (symmetric := reader.number(2)) != Alg.NULL:
        if symmetric != _AES:
            raise StructureError(f"the symmetric algorithm {symmetric:#06x} is not known")
        bits = reader.number(2)
        if bits not in (128, 192, 256):
            raise StructureError(f"AES has no keys of {bits} bits")
        reader.expect("mode", 2, _CFB)
    reader.expect("scheme", 2, Alg.NULL)
    if kind == Alg.RSA:
        reader.number(2)
        exponent = reader.number(4) or 65537
        modulus = int.from_bytes(reader.sized(), "big")
        reader.end()
        return _StorageKey(algorithm, bits, rsa.RSAPublicNumbers(exponent, modulus).public_key())
    if kind != Alg.ECC:
        raise StructureError(f"the type {kind:#06x} is not known")
    curve = _CURVES.get(reader.number(2))
    reader.expect("kdf", 2, Alg.NULL)
    x, y = (int.from_bytes(reader.sized(), "big") for _ in range(2))
    reader.end()
    if curve is None:
        raise StructureError("the curve is not P-256, P-384 or P-521")
    return _StorageKey(algorithm, bits, ec.EllipticCurvePublicNumbers(x, y, curve).public_key())
