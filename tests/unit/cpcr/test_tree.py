import hashlib
import hmac
import secrets

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cima_runc.cpcr.tree import MINIMUM_SLOTS, Tree, leaf_hash, node_hash, root_from_path


def plain_root(leaves: list[bytes]) -> bytes:
    """The design's formula, written again."""
    while len(leaves) > 1:
        leaves = [
            hashlib.sha256(b"\x01" + left + right).digest()
            for left, right in zip(leaves[::2], leaves[1::2], strict=True)
        ]
    return leaves[0]


def test_the_leaf_is_the_designs() -> None:
    secret, cpcr = secrets.token_bytes(32), secrets.token_bytes(32)
    masked = hmac.new(secret, cpcr + (7).to_bytes(8, "big"), hashlib.sha256).digest()
    assert leaf_hash(secret, cpcr, 7) == hashlib.sha256(b"\0" + masked).digest()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40), st.binary(min_size=32, max_size=32)), max_size=60))
def test_every_path_leads_to_the_root(changes: list[tuple[int, bytes]]) -> None:
    tree = Tree(slots=4)
    slots: list[int] = []
    values: dict[int, bytes] = {}
    for which, value in changes:
        if which >= len(slots):
            slots.append(tree.take())
        slot = slots[min(which, len(slots) - 1)]
        tree.set(slot, value)
        values[slot] = value
        for where, expected in values.items():
            assert root_from_path(expected, where, tree.path(where)) == tree.root
    assert len(set(slots)) == len(slots)
    assert tree.slots >= len(slots)


def test_the_root_is_that_of_all_slots() -> None:
    written = [secrets.token_bytes(32) for _ in range(8)]
    tree = Tree(slots=8)
    for slot, value in enumerate(written):
        tree.take(slot)
        tree.set(slot, value)
    assert tree.root == plain_root(written)
    tree.free(3)
    assert tree.root != plain_root(written)


def test_a_tree_doubles_when_it_is_full_and_keeps_what_it_has() -> None:
    tree = Tree(slots=2)
    first, second = tree.take(), tree.take()
    tree.set(first, bytes(32))
    third = tree.take()
    assert tree.slots == 4
    assert third in {2, 3}
    assert {first, second} == {0, 1}
    assert root_from_path(bytes(32), first, tree.path(first)) == tree.root


def test_a_new_tree_has_as_many_slots_as_the_design_says() -> None:
    assert Tree().slots == MINIMUM_SLOTS == 1024
    assert len(Tree().path(5)) == 10


def test_slots_are_taken_once_and_set_only_when_taken() -> None:
    tree = Tree(slots=4)
    tree.take(2)
    with pytest.raises(ValueError, match="taken"):
        tree.take(2)
    with pytest.raises(ValueError, match="not taken"):
        tree.set(1, bytes(32))
    assert tree.take(9) == 9
    assert tree.slots == 16


def test_the_slot_says_on_which_side_the_siblings_are() -> None:
    a, b = bytes(32), bytes([1] * 32)
    assert root_from_path(a, 0, [b]) == node_hash(a, b)
    assert root_from_path(b, 1, [a]) == node_hash(a, b)
    with pytest.raises(ValueError, match="slot 2"):
        root_from_path(a, 2, [b])
