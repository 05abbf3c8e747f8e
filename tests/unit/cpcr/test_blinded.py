import hashlib
import os

import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from hypothesis import given
from hypothesis import strategies as st

from cima_runc.cpcr.blinded import BlindedTree, blinded_leaf, blinds
from cima_runc.cpcr.tree import root_from_path


def test_blinds_are_the_keystream_of_rfc_8439() -> None:
    """RFC 8439, appendix A.1, test vectors 1 and 2: key and nonce zero, blocks 0 and 1."""
    stream = blinds(bytes(32), 4)
    assert stream.hex() == (
        "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
        "da41597c5157488d7724e03fb8d84a376a43b8f41518a11cc387b669b2ee6586"
        "9f07e7be5551387a98ba977c732d080dcb0f29a048e3656912c6533e32ee7aed"
        "29b721769ce64e43d57133b074d839d531ed1f28510afb45ace10a1f4b794d6f"
    )


def test_counter_and_nonce_are_those_of_the_aead() -> None:
    """The AEAD of the same RFC encrypts from block 1 on with the same nonce."""
    key = os.urandom(32)
    encrypted = ChaCha20Poly1305(key).encrypt(bytes(12), bytes(192), None)[:192]
    assert blinds(key, 8)[64:] == encrypted


@given(st.binary(min_size=32, max_size=32), st.integers(0, 3).map(lambda more: 1 << more))
def test_every_path_leads_to_the_root(key: bytes, slots: int) -> None:
    inners = os.urandom(32 * slots)
    tree = BlindedTree(inners, key)
    for slot in range(slots):
        leaf = blinded_leaf(tree.blind(slot), inners[32 * slot : 32 * slot + 32])
        covered = hashlib.sha256(b"\0" + tree.blind(slot) + inners[32 * slot : 32 * slot + 32])
        assert leaf == tree.leaf(slot) == covered.digest()
        assert tree.blind(slot) == blinds(key, slots)[32 * slot : 32 * slot + 32]
        assert root_from_path(leaf, slot, tree.path(slot)) == tree.root
        if slots > 1:
            with pytest.raises(ValueError, match="slot"):
                root_from_path(leaf, slots, tree.path(slot))


def test_two_trees_have_no_node_in_common() -> None:
    inners = bytes(32 * 1024)
    one, other = BlindedTree(inners), BlindedTree(inners)
    nodes = [
        {node for slot in range(1024) for node in (*tree.path(slot), tree.leaf(slot), tree.root)}
        for tree in (one, other)
    ]
    assert len(nodes[0]) == 2047
    assert nodes[0].isdisjoint(nodes[1])
