import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from cima_runc.evidence.request import Asker
from cima_runc.evidence.seal import UnsealError, key_id, open_sealed, seal, seal_to, unseal

PRIVATE = X25519PrivateKey.generate()
PUBLIC = PRIVATE.public_key().public_bytes_raw()
NONCE = b"n" * 16


def test_round_trip() -> None:
    sealed = seal(b"records", PUBLIC, "some-id", NONCE)
    assert b"records" not in sealed
    assert len(sealed) == 32 + len(b"records") + 16
    assert unseal(sealed, PRIVATE, "some-id", NONCE) == b"records"


def test_for_one_key_container_and_nonce_only() -> None:
    sealed = seal(b"records", PUBLIC, "some-id", NONCE)
    other = X25519PrivateKey.generate()
    for key, container, nonce in (
        (other, "some-id", NONCE),
        (PRIVATE, "some-ie", NONCE),
        (PRIVATE, "some-id", b"m" * 16),
    ):
        with pytest.raises(UnsealError):
            unseal(sealed, key, container, nonce)


@pytest.mark.parametrize("at", [0, 31, 32, -1])
def test_changed_byte(at: int) -> None:
    sealed = bytearray(seal(b"records", PUBLIC, "some-id", NONCE))
    sealed[at] ^= 1
    with pytest.raises(UnsealError):
        unseal(bytes(sealed), PRIVATE, "some-id", NONCE)


@pytest.mark.parametrize("size", [0, 31, 32, 40])
def test_cut(size: int) -> None:
    with pytest.raises(UnsealError):
        unseal(seal(b"records", PUBLIC, "some-id", NONCE)[:size], PRIVATE, "some-id", NONCE)


def test_key_id_tells_keys_apart() -> None:
    assert key_id(PUBLIC) != key_id(X25519PrivateKey.generate().public_key().public_bytes_raw())


def test_what_is_sealed_for_one_request_opens_for_no_other() -> None:
    private = X25519PrivateKey.generate()
    public = private.public_key().public_bytes_raw()
    sealed = seal_to(public, b"text", Asker.OUTSIDE, b"d" * 32)
    assert open_sealed(private, sealed, Asker.OUTSIDE, b"d" * 32) == b"text"
    for key, asker, digest, data in (
        (X25519PrivateKey.generate(), Asker.OUTSIDE, b"d" * 32, sealed),
        (private, Asker.WORKLOAD, b"d" * 32, sealed),
        (private, Asker.OUTSIDE, b"e" * 32, sealed),
        (private, Asker.OUTSIDE, b"d" * 32, sealed[:-1]),
        (private, Asker.OUTSIDE, b"d" * 32, b""),
    ):
        with pytest.raises(UnsealError):
            open_sealed(key, data, asker, digest)
