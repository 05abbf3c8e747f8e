"""Certificates byte by byte: as the tests want them, whether or not they are strict DER."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


def tlv(tag: int, *content: bytes) -> bytes:
    """One DER element."""
    body = b"".join(content)
    size = len(body)
    if size < 0x80:
        return bytes([tag, size]) + body
    octets = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(octets)]) + octets + body


def oid(dotted: str) -> bytes:
    """An OBJECT IDENTIFIER."""
    first, second, *rest = (int(part) for part in dotted.split("."))
    body = bytearray()
    for number in (40 * first + second, *rest):
        septets = [number & 0x7F]
        while number := number >> 7:
            septets.append(0x80 | number & 0x7F)
        body += bytes(reversed(septets))
    return tlv(0x06, bytes(body))


def name(*relatives: Sequence[tuple[str, str]]) -> bytes:
    """A Name of relative names, each of (OID, text) in the order given, sorted or not."""
    return tlv(
        0x30,
        *(
            tlv(0x31, *(tlv(0x30, oid(kind), tlv(0x0C, text.encode())) for kind, text in one))
            for one in relatives
        ),
    )


def common_name(text: str) -> bytes:
    """A Name with a common name only."""
    return name([("2.5.4.3", text)])


def extension(dotted: str, value: bytes, *, critical: bool = False) -> bytes:
    """An Extension."""
    flag = tlv(0x01, b"\xff") if critical else b""
    return tlv(0x30, oid(dotted), flag, tlv(0x04, value))


def basic_constraints(
    *, ca: bool, path: int | None = None, explicit: bool = False, critical: bool = True
) -> bytes:
    """The basicConstraints; ``explicit`` writes FALSE out, which DER forbids."""
    flag = tlv(0x01, b"\xff" if ca else b"\0") if ca or explicit else b""
    length = tlv(0x02, bytes([path])) if path is not None else b""
    return extension("2.5.29.19", tlv(0x30, flag, length), critical=critical)


def key_usage(bits: int) -> bytes:
    """The keyUsage: the first octet, with digitalSignature as the highest bit."""
    return extension("2.5.29.15", tlv(0x03, bytes([0, bits])), critical=True)


CERT_SIGN = 0x04
KEY_ENCIPHERMENT = 0x20
DIGITAL_SIGNATURE = 0x80


def purposes(*dotted: str, critical: bool = False) -> bytes:
    """The extKeyUsage."""
    return extension("2.5.29.37", tlv(0x30, *(oid(one) for one in dotted)), critical=critical)


EK_PURPOSE = "2.23.133.8.1"


def policies(*dotted: str) -> bytes:
    """The certificatePolicies, critical."""
    return extension(
        "2.5.29.32", tlv(0x30, *(tlv(0x30, oid(one)) for one in dotted)), critical=True
    )


def tpm_name(manufacturer: str = "id:53544D20", model: str = "ST33") -> bytes:
    """The subjectAltName of an EK certificate, critical."""
    relatives = name(
        [("2.23.133.2.1", manufacturer)], [("2.23.133.2.2", model)], [("2.23.133.2.3", "id:0001")]
    )
    return extension("2.5.29.17", tlv(0x30, tlv(0xA4, relatives)), critical=True)


def directory_attributes(*dotted: str, critical: bool) -> bytes:
    """The subjectDirectoryAttributes, with nothing but names of attributes that matters."""
    value = tlv(0x30, *(tlv(0x30, oid(one), tlv(0x31, tlv(0x05))) for one in dotted))
    return extension("2.5.29.9", value, critical=critical)


def spki(key: Key) -> bytes:
    """The SubjectPublicKeyInfo of a key."""
    return key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def pem(der: bytes) -> bytes:
    """PEM of a certificate."""
    body = base64.encodebytes(der)
    return b"-----BEGIN CERTIFICATE-----\n" + body + b"-----END CERTIFICATE-----\n"


@dataclass(frozen=True)
class Certificate:
    """What is to be in a certificate."""

    subject: bytes
    issuer: bytes
    key: Key | bytes
    """The subject's key, or its SubjectPublicKeyInfo."""
    signer: Key
    extensions: Sequence[bytes] = field(default=())
    serial: int = 1
    begins: datetime = datetime(2020, 1, 1, tzinfo=UTC)
    ends: datetime = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
    hash: hashes.HashAlgorithm = field(default_factory=hashes.SHA256)
    damage: bool = False
    """Whether one bit of the signature is turned."""

    def der(self) -> bytes:
        """Sign it."""
        if isinstance(self.signer, ec.EllipticCurvePrivateKey):
            number = {"sha1": "1", "sha256": "3.2", "sha384": "3.3", "sha512": "3.4"}[
                self.hash.name
            ]
            algorithm = tlv(0x30, oid(f"1.2.840.10045.4.{number}"))
        else:
            last = {"md5": "4", "sha1": "5", "sha256": "11", "sha384": "12", "sha512": "13"}[
                self.hash.name
            ]
            algorithm = tlv(0x30, oid(f"1.2.840.113549.1.1.{last}"), tlv(0x05))
        key = self.key if isinstance(self.key, bytes) else spki(self.key)
        tbs = tlv(
            0x30,
            tlv(0xA0, tlv(0x02, b"\x02")),
            tlv(0x02, bytes([self.serial])),
            algorithm,
            self.issuer,
            tlv(
                0x30,
                *(
                    tlv(0x18, at.strftime("%Y%m%d%H%M%SZ").encode())
                    for at in (self.begins, self.ends)
                ),
            ),
            self.subject,
            key,
            tlv(0xA3, tlv(0x30, *self.extensions)) if self.extensions else b"",
        )
        if isinstance(self.signer, ec.EllipticCurvePrivateKey):
            signature = self.signer.sign(tbs, ec.ECDSA(self.hash))
        else:
            signature = self.signer.sign(tbs, padding.PKCS1v15(), self.hash)
        if self.damage:
            signature = signature[:-1] + bytes([signature[-1] ^ 1])
        return tlv(0x30, tbs, algorithm, tlv(0x03, b"\0", signature))


def elements(data: bytes) -> list[bytes]:
    """The elements of which ``data`` is a run, each with its head."""
    found = []
    while data:
        head, size = 2, data[1]
        if size & 0x80:
            octets = size & 0x7F
            head, size = 2 + octets, int.from_bytes(data[2 : 2 + octets], "big")
        found.append(data[: head + size])
        data = data[head + size :]
    return found


def content(element: bytes) -> bytes:
    """What is in an element."""
    octets = element[1] & 0x7F if element[1] & 0x80 else 0
    return element[2 + octets :]


def subject_and_extensions(der: bytes) -> tuple[bytes, list[bytes]]:
    """The subject and the extensions of a certificate, byte by byte as they are."""
    fields = elements(content(elements(content(der))[0]))
    fields = fields[1:] if fields[0][0] == 0xA0 else fields
    extensions = [one for one in fields if one[0] == 0xA3]
    return fields[4], elements(content(content(extensions[0]))) if extensions else []
