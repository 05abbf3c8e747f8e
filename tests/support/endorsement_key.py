"""Public areas of endorsement keys that no TPM has."""

import struct

from cryptography.hazmat.primitives.asymmetric import ec

AES_128_CFB = struct.pack(">HHH", 6, 128, 0x43)
NULL = struct.pack(">H", 0x10)
ATTRIBUTES = 0x300B2


def endorsement_key(point: ec.EllipticCurvePublicNumbers, attributes: int, policy: bytes) -> bytes:
    """A TPMT_PUBLIC (TPM 2.0 Library Part 2, section 12.2.4) of that key."""
    unique = b"".join(
        struct.pack(">H", 32) + value.to_bytes(32, "big") for value in (point.x, point.y)
    )
    head = struct.pack(">HHIH", 0x23, 0x0B, attributes, len(policy)) + policy
    return head + AES_128_CFB + NULL + struct.pack(">H", 3) + NULL + unique


def new_point() -> ec.EllipticCurvePublicNumbers:
    return ec.generate_private_key(ec.SECP256R1()).public_key().public_numbers()
