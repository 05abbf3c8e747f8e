import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from cima_runc.evidence.request import Asker
from cima_runc.evidence.seal import UnsealError, open_sealed, seal_to


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
