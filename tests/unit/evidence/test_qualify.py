import hashlib

from hypothesis import given
from hypothesis import strategies as st

from cima_runc.evidence.qualify import Inclusion, aggregate, aggregate_among, request_leaf, root_of

LEAVES = st.lists(st.binary(min_size=32, max_size=32), min_size=1, max_size=70)


def merkle_tree_hash(leaves: list[bytes]) -> bytes:
    """RFC 9162, 2.1.1, over leaves that are hashed already."""
    if len(leaves) == 1:
        return leaves[0]
    split = max(2**power for power in range(8) if 2**power < len(leaves))
    left, right = merkle_tree_hash(leaves[:split]), merkle_tree_hash(leaves[split:])
    return hashlib.sha256(b"\x01" + left + right).digest()


def test_leaf() -> None:
    expected = hashlib.sha256(b"\0" + b"n" * 16 + hashlib.sha256(b"some-id").digest()).digest()
    assert request_leaf(b"n" * 16, "some-id") == expected


def test_one_request_is_the_root() -> None:
    assert aggregate([b"l" * 32]) == (b"l" * 32, [Inclusion(0, 1, ())])


@given(LEAVES)
def test_shape_and_paths(leaves: list[bytes]) -> None:
    root, places = aggregate(leaves)
    assert root == merkle_tree_hash(leaves)
    for number, (leaf, place) in enumerate(zip(leaves, places, strict=True)):
        assert (place.index, place.size) == (number, len(leaves))
        assert root_of(leaf, place) == root


@given(LEAVES, st.data())
def test_no_other_place(leaves: list[bytes], data: st.DataObject) -> None:
    root, places = aggregate(leaves)
    number = data.draw(st.integers(0, len(leaves) - 1))
    place = places[number]
    other = data.draw(st.integers(0, len(leaves) + 3).filter(lambda index: index != number))
    if other >= len(leaves) or leaves[other] != leaves[number]:
        assert root_of(leaves[number], Inclusion(other, place.size, place.path)) != root
    assert root_of(leaves[number], Inclusion(number, place.size, (*place.path, b"p" * 32))) != root
    if place.path:
        assert root_of(leaves[number], Inclusion(number, place.size, place.path[:-1])) != root


@given(st.integers(1, 64))
def test_places_among_others(count: int) -> None:
    leaves = [request_leaf(bytes([number]) * 16, "c") for number in range(count)]
    root, places = aggregate_among(leaves, 64)
    for leaf, place in zip(leaves, places, strict=True):
        assert root_of(leaf, place) == root
        assert place.size == (1 if count == 1 else 64)
    assert len({place.index for place in places}) == count
