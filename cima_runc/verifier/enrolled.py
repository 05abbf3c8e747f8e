"""The attestation key that a verifier trusts, as he keeps it in a file.

A PEM public key (RFC 7468), with the line ``cima-ak-name: <hex>`` before it where the name is
known, as it is after an enrolment. The name covers the key's attributes; the key alone does not.
"""

import re
from dataclasses import dataclass

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from cima_runc.base import limits
from cima_runc.base.errors import CimaError
from cima_runc.tpm.structures import PublicArea

_NAME = re.compile(rb"^cima-ak-name: ([0-9a-f]{68})\r?$", re.MULTILINE)


class EnrolledAkError(CimaError):
    """The file of the enrolled key cannot be used."""

    def __init__(self, what: str) -> None:
        super().__init__(what, hint="get the host's key with: cima enroll")


@dataclass(frozen=True)
class EnrolledAk:
    """The enrolled key."""

    spki: bytes
    """SubjectPublicKeyInfo, DER."""
    name: bytes | None
    """Its TPM name, where it is known."""

    def is_key_of(self, public: PublicArea) -> bool:
        """Whether this is the key of that public area."""
        if self.name is not None and self.name != public.name:
            return False
        return self.spki == _spki(public.key)


def parse_enrolled_ak(raw: bytes) -> EnrolledAk:
    """Read the file of an enrolled key.

    Raises:
        EnrolledAkError: not a PEM public key.
    """
    if len(raw) > limits.VERIFIER_INPUT:
        raise EnrolledAkError("the attestation key's file is too large")
    try:
        key = serialization.load_pem_public_key(raw[max(raw.find(b"-----BEGIN"), 0) :])
    except (ValueError, UnsupportedAlgorithm) as error:
        raise EnrolledAkError("the attestation key's file is not a PEM public key") from error
    named = _NAME.search(raw)
    return EnrolledAk(_spki(key), bytes.fromhex(named[1].decode("ascii")) if named else None)


def enrolled_ak_file(public: PublicArea) -> bytes:
    """Return the file for an enrolled key."""
    pem = public.key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return b"cima-ak-name: " + public.name.hex().encode("ascii") + b"\n" + pem


def _spki(key: object) -> bytes:
    encoded: bytes = key.public_bytes(  # type: ignore[attr-defined]
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return encoded
