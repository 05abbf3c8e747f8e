from hypothesis import given
from hypothesis import strategies as st
from support.x509_by_hand import tlv

from cima_runc.tpm.stored_certificate import is_certificate, join_chain, unwrap

CERTIFICATES = [
    tlv(0x30, tlv(0x30, bytes(size)), tlv(0x30), tlv(0x03, b"signed"))
    for size in (1, 100, 200, 700, 70_000)
]
certificates = st.lists(st.sampled_from(CERTIFICATES), min_size=1, max_size=4)


@given(certificates, st.integers(1, 900), st.sampled_from([b"", bytes(9), b"\xff" * 30]))
def test_a_chain_over_indices(chain: list[bytes], size: int, filled: bytes) -> None:
    data = b"".join(chain)
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    pieces[-1] += filled
    found, foreign = join_chain(enumerate(pieces, 0x01C00100))
    assert (found, foreign) == (chain, [])


@given(certificates, st.binary(max_size=40))
def test_each_in_an_index_and_one_that_is_foreign(chain: list[bytes], junk: bytes) -> None:
    found, foreign = join_chain(enumerate([junk, *chain, junk]))
    assert found == chain
    assert foreign == [0, len(chain) + 1]


@given(certificates, st.integers(0, 40), st.binary(max_size=3))
def test_what_looks_like_the_beginning_of_one_that_the_next_index_ends(
    chain: list[bytes], size: int, junk: bytes
) -> None:
    """A SEQUENCE as long as the certificates behind it, or as some bytes of them."""
    for claimed in (size, *(len(b"".join(chain[:count])) for count in range(1, len(chain) + 1))):
        begun = tlv(0x30, bytes(claimed))[:-claimed] if claimed else b"\x30\x00"
        found, _ = join_chain(enumerate([begun + junk[:claimed], *chain]))
        assert not [one for one in found if one not in chain]


def test_the_beginning_of_one_that_never_goes_on() -> None:
    found, foreign = join_chain([(1, b"\x30\x82\x7f\xff"), (2, CERTIFICATES[2]), (3, b"\x30")])
    assert (found, foreign) == ([CERTIFICATES[2]], [1, 3])


@given(st.lists(st.binary(max_size=300), max_size=5))
def test_any_bytes(pieces: list[bytes]) -> None:
    found, foreign = join_chain(enumerate(pieces))
    assert all(is_certificate(one) for one in found)
    assert set(foreign) <= set(range(len(pieces)))
    for piece in pieces:
        unwrap(piece)


@given(st.sampled_from(CERTIFICATES), st.binary(max_size=20))
def test_wrapped(certificate: bytes, behind: bytes) -> None:
    assert unwrap(certificate + behind) == certificate
    assert unwrap(tlv(0x04, certificate) + behind) == certificate
    if len(certificate) < 1 << 16:
        size = (len(certificate) + 2).to_bytes(2, "big")
        assert unwrap(b"\x10\x01\0" + size + b"\x10\x02" + certificate + behind) == certificate
    assert unwrap(certificate[:-1]) == certificate[:-1]
    assert not is_certificate(certificate[:-1])
