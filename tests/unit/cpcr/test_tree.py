import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cima_runc.cpcr.tree import node_hash, root_from_path

values = st.binary(min_size=32, max_size=32)


def test_the_slot_says_on_which_side_the_siblings_are() -> None:
    a, b = bytes(32), bytes([1] * 32)
    assert node_hash(a, b) == hashlib.sha256(b"\1" + a + b).digest()
    assert root_from_path(a, 0, [b]) == node_hash(a, b)
    assert root_from_path(b, 1, [a]) == node_hash(a, b)
    for slot in (-1, 2):
        with pytest.raises(ValueError, match=f"slot {slot}"):
            root_from_path(a, slot, [b])


@given(st.lists(values, min_size=8, max_size=8), st.integers(0, 7))
def test_every_slot_leads_to_the_root(leaves: list[bytes], slot: int) -> None:
    level, path, at = leaves, [], slot
    while len(level) > 1:
        path.append(level[at ^ 1])
        level = [node_hash(*level[n : n + 2]) for n in range(0, len(level), 2)]
        at >>= 1
    assert root_from_path(leaves[slot], slot, path) == level[0]
