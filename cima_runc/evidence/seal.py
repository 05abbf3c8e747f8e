"""Encryption to a container's owner, so that evidence may pass through anybody's hands.

HPKE (RFC 9180) in base mode, single shot: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM.
The ciphertext is the encapsulated key (32 bytes) followed by the AEAD's output. ``info`` is
"cima-evidence-v2" NUL || T || SHA-256 of the request's RFC 8785 bytes, so that it fits one request
alone. Nothing says whose key it is: the owner tries all.
"""

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from cima_runc.base.errors import CimaError
from cima_runc.evidence.request import Asker

_SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
_PREFIX = b"cima-evidence-v2\0"


class UnsealError(CimaError):
    """The ciphertext is not for this key and request, or was changed."""


def seal_to(public: bytes, plaintext: bytes, asker: Asker, request: bytes) -> bytes:
    """Encrypt ``plaintext`` to the X25519 key ``public`` (32 bytes) for one request.

    ``request`` is the request's digest, 32 bytes.
    """
    key = X25519PublicKey.from_public_bytes(public)
    return _SUITE.encrypt(plaintext, key, _PREFIX + asker.value + request)


def open_sealed(
    private: X25519PrivateKey, ciphertext: bytes, asker: Asker, request: bytes
) -> bytes:
    """Return what :func:`seal_to` encrypted.

    Raises:
        UnsealError: another key, another request, or a changed ciphertext.
    """
    try:
        return _SUITE.decrypt(ciphertext, private, _PREFIX + asker.value + request)
    except (InvalidTag, ValueError) as error:
        raise UnsealError("the ciphertext does not open") from error
