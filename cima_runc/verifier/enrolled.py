"""The attestation key that a verifier trusts, as he keeps it in a file.

A PEM public key (RFC 7468). Before it, where they are known, as they are after an enrolment, the
lines ``cima-ak-name: <hex>`` and ``cima-label: <what the host is called>``. The name covers the
key's attributes; the key alone does not. A file with anything else in it is refused: a line that is
misspelt must not weaken what is checked.
"""

import re
from dataclasses import dataclass

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from cima_runc.base import limits
from cima_runc.base.errors import CimaError
from cima_runc.base.text import printable
from cima_runc.tpm.structures import PublicArea

_NAME = re.compile(rb"cima-ak-name: (000b[0-9a-f]{64})")
_LABEL = re.compile(rb"cima-label: ([!-~](?:[ -~]{0,126}[!-~])?)")
_BEGIN, _END = b"-----BEGIN PUBLIC KEY-----", b"-----END PUBLIC KEY-----"


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
    label: str = ""
    """What the host was called when it was enrolled; it proves nothing."""

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
    lines = [line.rstrip(b"\r") for line in raw.split(b"\n") if line.strip()]
    if lines.count(_BEGIN) != 1 or lines.count(_END) != 1 or lines[-1] != _END:
        raise EnrolledAkError("the attestation key's file does not hold one PEM public key")
    start = lines.index(_BEGIN)
    name, label = None, ""
    for line in lines[:start]:
        named, labelled = _NAME.fullmatch(line), _LABEL.fullmatch(line)
        if named is not None and name is None:
            name = bytes.fromhex(named[1].decode("ascii"))
        elif labelled is not None and not label:
            label = labelled[1].decode("ascii")
        else:
            raise EnrolledAkError(
                "the attestation key's file has a line that is not understood: "
                + printable(line[:80])
            )
    try:
        key = serialization.load_pem_public_key(b"\n".join(lines[start:]) + b"\n")
    except (ValueError, UnsupportedAlgorithm) as error:
        raise EnrolledAkError("the attestation key's file is not a PEM public key") from error
    return EnrolledAk(_spki(key), name, label)


def enrolled_ak_file(public: PublicArea, label: str = "") -> bytes:
    """Return the file for an enrolled key; ``label`` is what its host is called.

    Raises:
        EnrolledAkError: the label is not 1 to 128 printable ASCII characters.
    """
    named = f"cima-label: {label}".encode("utf-8", "surrogatepass")
    if label and not _LABEL.fullmatch(named):
        raise EnrolledAkError("a host's label is 1 to 128 printable ASCII characters")
    pem = public.key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    head = b"cima-ak-name: " + public.name.hex().encode("ascii") + b"\n"
    return head + (named + b"\n" if label else b"") + pem


def _spki(key: object) -> bytes:
    encoded: bytes = key.public_bytes(  # type: ignore[attr-defined]
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return encoded
