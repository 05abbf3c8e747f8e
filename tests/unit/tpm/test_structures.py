import hashlib
import struct

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils
from hypothesis import given
from hypothesis import strategies as st

from cima_runc.tpm.structures import (
    Alg,
    NotAQuoteError,
    NotGeneratedError,
    StructureError,
    parse_public,
    parse_quote,
    parse_signature,
    signed_by,
)

AK_ATTRIBUTES = 0x00050472
"""fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth, noDA, restricted, sign."""


def sized(data: bytes) -> bytes:
    return struct.pack(">H", len(data)) + data


def quote_bytes(
    *,
    magic: int = 0xFF544347,
    kind: int = 0x8018,
    extra: bytes = b"x" * 32,
    select: bytes = b"\xff\x53\x00",
    bank: int = 0x000B,
    banks: int = 1,
    safe: int = 1,
    digest: bytes = b"d" * 32,
) -> bytes:
    head = struct.pack(">IH", magic, kind) + sized(b"\0\x0b" + b"s" * 32) + sized(extra)
    clock = struct.pack(">QIIB", 1234, 5, 6, safe) + struct.pack(">Q", 77)
    bank_select = struct.pack(">IHB", banks, bank, len(select)) + select
    return head + clock + bank_select + sized(digest)


def ecc_public(key: ec.EllipticCurvePublicKey, attributes: int = AK_ATTRIBUTES) -> bytes:
    numbers = key.public_numbers()
    area = struct.pack(">HHI", 0x0023, 0x000B, attributes) + sized(b"")
    area += struct.pack(">HHHHH", 0x0010, 0x0018, 0x000B, 0x0003, 0x0010)
    return area + sized(numbers.x.to_bytes(32, "big")) + sized(numbers.y.to_bytes(32, "big"))


def rsa_public(key: rsa.RSAPublicKey, scheme: int = 0x0014) -> bytes:
    modulus = key.public_numbers().n.to_bytes(key.key_size // 8, "big")
    area = struct.pack(">HHI", 0x0001, 0x000B, AK_ATTRIBUTES) + sized(b"")
    area += struct.pack(">HHHHI", 0x0010, scheme, 0x000B, key.key_size, 0)
    return area + sized(modulus)


def test_quote_fields() -> None:
    body = parse_quote(quote_bytes())
    assert body.pcrs == (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 14)
    assert body.extra_data == b"x" * 32
    assert (body.clock.clock, body.clock.reset_count, body.clock.restart_count) == (1234, 5, 6)
    assert body.clock.safe
    assert body.pcr_digest == b"d" * 32


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"magic": 0xFF544348}, NotGeneratedError),
        ({"kind": 0x8017}, NotAQuoteError),
        ({"bank": 0x0004}, StructureError),
        ({"banks": 2}, StructureError),
        ({"banks": 0}, StructureError),
        ({"safe": 2}, StructureError),
        ({"digest": b"d" * 20}, StructureError),
    ],
)
def test_quote_refused(changes: dict[str, int], error: type[StructureError]) -> None:
    with pytest.raises(error):
        parse_quote(quote_bytes(**changes))  # type: ignore[arg-type]


def test_quote_followed_by_more_is_refused() -> None:
    with pytest.raises(StructureError, match="do not belong"):
        parse_quote(quote_bytes() + b"\0")


@given(st.integers(0, len(quote_bytes()) - 1))
def test_cut_quote_is_refused(size: int) -> None:
    with pytest.raises(StructureError):
        parse_quote(quote_bytes()[:size])


@given(st.binary(max_size=300))
def test_anything_is_read_or_refused(data: bytes) -> None:
    for parse in (parse_quote, parse_public, parse_signature):
        with pytest.raises(StructureError):
            parse(data)


@given(st.sets(st.integers(0, 23)))
def test_any_selection(pcrs: set[int]) -> None:
    select = sum(1 << pcr for pcr in pcrs).to_bytes(3, "little")
    assert parse_quote(quote_bytes(select=select)).pcrs == tuple(sorted(pcrs))


def test_ecc_key_and_name() -> None:
    private = ec.generate_private_key(ec.SECP256R1())
    data = ecc_public(private.public_key())
    public = parse_public(data)
    assert public.key.public_numbers() == private.public_key().public_numbers()
    assert public.name == b"\x00\x0b" + hashlib.sha256(data).digest()
    assert public.missing_attributes() == []


@pytest.mark.parametrize(
    ("bit", "name"),
    [(1, "fixedTPM"), (4, "fixedParent"), (5, "sensitiveDataOrigin"), (16, "restricted")],
)
def test_missing_attribute_is_named(bit: int, name: str) -> None:
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    assert parse_public(ecc_public(key, AK_ATTRIBUTES & ~(1 << bit))).missing_attributes() == [name]


def test_decryption_key_is_no_attestation_key() -> None:
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    assert parse_public(ecc_public(key, AK_ATTRIBUTES | 1 << 17)).missing_attributes()


def test_point_off_the_curve_is_refused() -> None:
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    data = bytearray(ecc_public(key))
    data[-1] ^= 1
    with pytest.raises(StructureError, match="no point"):
        parse_public(bytes(data))


def test_ecdsa_signature() -> None:
    private = ec.generate_private_key(ec.SECP256R1())
    r, s = utils.decode_dss_signature(private.sign(b"data", ec.ECDSA(hashes.SHA256())))
    data = struct.pack(">HH", 0x0018, 0x000B)
    data += sized(r.to_bytes(32, "big")) + sized(s.to_bytes(32, "big"))
    signature = parse_signature(data)
    assert signed_by(private.public_key(), signature, b"data")
    assert not signed_by(private.public_key(), signature, b"date")
    other = ec.generate_private_key(ec.SECP256R1())
    assert not signed_by(other.public_key(), signature, b"data")


@pytest.mark.parametrize("scheme", [Alg.RSASSA, Alg.RSAPSS])
def test_rsa_signature(scheme: Alg) -> None:
    private = rsa.generate_private_key(65537, 2048)
    pads = {
        Alg.RSASSA: padding.PKCS1v15(),
        Alg.RSAPSS: padding.PSS(padding.MGF1(hashes.SHA256()), 32),
    }
    value = private.sign(b"data", pads[scheme], hashes.SHA256())
    signature = parse_signature(struct.pack(">HH", scheme, 0x000B) + sized(value))
    public = parse_public(rsa_public(private.public_key(), scheme))
    assert signed_by(public.key, signature, b"data")
    assert not signed_by(public.key, signature, b"date")
    ecc = ec.generate_private_key(ec.SECP256R1()).public_key()
    assert not signed_by(ecc, signature, b"data")


def test_small_rsa_key_is_refused() -> None:
    key = rsa.generate_private_key(65537, 1024).public_key()
    with pytest.raises(StructureError, match="2048"):
        parse_public(rsa_public(key))
