"""tests/integration/test_tpms.py has real TPMs activate what is made here."""

import os
import struct

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from hypothesis import given
from hypothesis import strategies as st

from cima_runc.tpm.credential import (
    CredentialError,
    ek_key_digest,
    ek_public_pem,
    make_credential,
)

AK_NAME = b"\x00\x0b" + bytes(32)
AES_128_CFB = struct.pack(">HHH", 6, 128, 0x43)
NULL = struct.pack(">H", 0x10)


def sized(value: bytes) -> bytes:
    return struct.pack(">H", len(value)) + value


def ecc(
    curve: ec.EllipticCurve, number: int, *, hash_: int = 0x0B, under: bytes = AES_128_CFB
) -> bytes:
    """A TPMT_PUBLIC as Part 2 of the library describes it."""
    point = ec.generate_private_key(curve).public_key().public_numbers()
    size = (curve.key_size + 7) // 8
    unique = b"".join(sized(value.to_bytes(size, "big")) for value in (point.x, point.y))
    head = struct.pack(">HHI", 0x23, hash_, 0x300B2) + sized(bytes(32))
    return head + under + NULL + struct.pack(">H", number) + NULL + unique


def test_a_credential_has_the_form_that_the_library_says() -> None:
    made = make_credential(ecc(ec.SECP384R1(), 4, hash_=0x0C), AK_NAME, b"s" * 32)
    assert len(made.blob) == 2 + 48 + 2 + 32
    assert len(made.secret) == 2 * (2 + 48)
    again = make_credential(ecc(ec.SECP384R1(), 4, hash_=0x0C), AK_NAME, b"s" * 32)
    assert made != again


def test_the_key_as_pem() -> None:
    key = load_pem_public_key(ek_public_pem(ecc(ec.SECP256R1(), 3)))
    assert isinstance(key, ec.EllipticCurvePublicKey)
    modulus = rsa.generate_private_key(65537, 2048).public_key().public_numbers().n
    head = struct.pack(">HHI", 1, 0x0B, 0x300B2) + sized(bytes(32)) + AES_128_CFB + NULL
    area = head + struct.pack(">HI", 2048, 0) + sized(modulus.to_bytes(256, "big"))
    read = load_pem_public_key(ek_public_pem(area))
    assert isinstance(read, rsa.RSAPublicKey) and read.public_numbers().n == modulus
    assert len(make_credential(area, AK_NAME, b"s").secret) == 256


def test_a_key_is_known_by_itself_alone() -> None:
    """Attributes, policy, the hash of its name: a host can say of them what it likes."""
    area = ecc(ec.SECP256R1(), 3)
    point = area[-68:]
    others = [
        area[:4] + b"\x00\x03\x00\xb3" + area[8:],
        area[:10] + bytes([1]) * 32 + area[42:],
        area[:2] + b"\x00\x0c" + area[4:],
        area[:8] + sized(b"") + area[42:],
        area[:42] + struct.pack(">HHH", 6, 256, 0x43) + area[48:],
    ]
    assert all(other != area and other[-68:] == point for other in others)
    assert {ek_key_digest(other) for other in (area, *others)} == {ek_key_digest(area)}
    assert ek_key_digest(ecc(ec.SECP256R1(), 3)) != ek_key_digest(area)


@pytest.mark.parametrize(
    ("area", "said"),
    [
        (ecc(ec.SECP256R1(), 3, under=NULL), "no storage key"),
        (ecc(ec.SECP256R1(), 3, hash_=4), "hash"),
        (ecc(ec.SECP256R1(), 4), "public area"),
        (ecc(ec.SECP256R1(), 9), "curve"),
        (ecc(ec.SECP256R1(), 3) + b"x", "do not belong"),
        (b"", "too early"),
    ],
)
def test_what_is_no_such_key(area: bytes, said: str) -> None:
    with pytest.raises(CredentialError, match=said):
        make_credential(area, AK_NAME, b"s")


def test_a_secret_that_is_too_long() -> None:
    with pytest.raises(CredentialError, match="32 bytes"):
        make_credential(ecc(ec.SECP256R1(), 3), AK_NAME, b"s" * 33)


GOOD = ecc(ec.SECP256R1(), 3)


@given(st.integers(0, len(GOOD) - 1), st.integers(1, 255))
def test_any_public_area_is_read_or_refused(at: int, change: int) -> None:
    area = bytearray(GOOD)
    area[at] ^= change
    try:
        make_credential(bytes(area), AK_NAME, os.urandom(32))
    except CredentialError as error:
        assert error.what
