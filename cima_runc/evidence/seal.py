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

_SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
_PREFIX = b"cima-evidence-v1\0"


class UnsealError(CimaError):
    """The ciphertext is not for this key and request, or was changed."""


def key_id(public: bytes) -> bytes:
    """Return SHA-256 of an X25519 public key's 32 bytes: tells recipients apart."""
    return hashlib.sha256(public).digest()


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
