"""Encryption to a container's owner, so that evidence may pass through anybody's hands.

HPKE (RFC 9180) in base mode, single shot: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM.
The ciphertext is the encapsulated key (32 bytes) followed by the AEAD's output. ``info`` is
"cima-evidence-v1" NUL || SHA256(container id) || nonce, so that it fits one request alone.
"""

import hashlib

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from cima_runc.base.errors import CimaError
from cima_runc.evidence.request import Asker

_SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
_PREFIX = b"cima-evidence-v1\0"
_PREFIX_2 = b"cima-evidence-v2\0"


class UnsealError(CimaError):
    """The ciphertext is not for this key and request, or was changed."""


def key_id(public: bytes) -> bytes:
    """Return SHA-256 of an X25519 public key's 32 bytes: tells recipients apart."""
    return hashlib.sha256(public).digest()


def seal_to(public: bytes, plaintext: bytes, asker: Asker, request: bytes) -> bytes:
    """Encrypt ``plaintext`` to the X25519 key ``public`` (32 bytes) for one request.

    ``request`` is the request's digest, 32 bytes.
    """
    key = X25519PublicKey.from_public_bytes(public)
    return _SUITE.encrypt(plaintext, key, _PREFIX_2 + asker.value + request)


def open_sealed(
    private: X25519PrivateKey, ciphertext: bytes, asker: Asker, request: bytes
) -> bytes:
    """Return what :func:`seal_to` encrypted.

    Raises:
        UnsealError: another key, another request, or a changed ciphertext.
    """
    try:
        return _SUITE.decrypt(ciphertext, private, _PREFIX_2 + asker.value + request)
    except (InvalidTag, ValueError) as error:
        raise UnsealError("the ciphertext does not open") from error


def seal(plaintext: bytes, public: bytes, container_id: str, nonce: bytes) -> bytes:
    """Encrypt ``plaintext`` to the X25519 key ``public`` (32 bytes) for one request."""
    key = X25519PublicKey.from_public_bytes(public)
    return _SUITE.encrypt(plaintext, key, _info(container_id, nonce))


def unseal(ciphertext: bytes, private: X25519PrivateKey, container_id: str, nonce: bytes) -> bytes:
    """Return what :func:`seal` encrypted.

    Raises:
        UnsealError: another key, another request, or a changed ciphertext.
    """
    try:
        return _SUITE.decrypt(ciphertext, private, _info(container_id, nonce))
    except (InvalidTag, ValueError) as error:
        raise UnsealError("the ciphertext does not open") from error


def _info(container_id: str, nonce: bytes) -> bytes:
    return _PREFIX + hashlib.sha256(container_id.encode("utf-8")).digest() + nonce
