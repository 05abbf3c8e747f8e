"""A signing key outside of any TPM that claims to be in one."""

import base64
import struct

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils

from cima_runc.verifier.enrolled import EnrolledAk, parse_enrolled_ak


def software_key(attributes: int) -> tuple[ec.EllipticCurvePrivateKey, bytes, EnrolledAk]:
    def sized(data: bytes) -> bytes:
        return struct.pack(">H", len(data)) + data

    private = ec.generate_private_key(ec.SECP256R1())
    numbers = private.public_key().public_numbers()
    area = struct.pack(">HHIH", 0x23, 0x0B, attributes, 0)
    area += struct.pack(">HHHHH", 0x10, 0x18, 0x0B, 0x03, 0x10)
    area += sized(numbers.x.to_bytes(32, "big")) + sized(numbers.y.to_bytes(32, "big"))
    pem = private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return private, area, parse_enrolled_ak(pem)


def signed(private: ec.EllipticCurvePrivateKey, attest: bytes) -> str:
    r, s = utils.decode_dss_signature(private.sign(attest, ec.ECDSA(hashes.SHA256())))
    data = struct.pack(">HHH", 0x18, 0x0B, 32) + r.to_bytes(32, "big")
    return base64.b64encode(data + struct.pack(">H", 32) + s.to_bytes(32, "big")).decode()


def software_public(attributes: int) -> bytes:
    """Return the public area of a new key."""
    return software_key(attributes)[1]
