import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cima_runc.cpcr.inner import EMPTY, inner
from cima_runc.cpcr.table import Table, host_digest, table_leaf


def whole(inners: bytes) -> bytes:
    """Return the root over these, computed all at once."""
    level = [
        hashlib.sha256(b"\4" + inners[at : at + 32]).digest() for at in range(0, len(inners), 32)
    ]
    while len(level) > 1:
        level = [
            hashlib.sha256(b"\1" + level[at] + level[at + 1]).digest()
            for at in range(0, len(level), 2)
        ]
    return level[0]


def test_what_a_register_is_in_the_trees() -> None:
    secret, cpcr = b"s" * 32, b"c" * 32
    number = b"\0\0\0\0\0\0\1\2"
    assert inner(secret, cpcr, 258) == hmac.new(secret, cpcr + number, hashlib.sha256).digest()
    assert bytes(32) == EMPTY
    assert table_leaf(b"i" * 32) == hashlib.sha256(b"\4" + b"i" * 32).digest()
    covered = hashlib.sha256(b"\5" + b"k" * 32 + b"t" * 32).digest()
    assert host_digest(b"k" * 32, b"t" * 32) == covered


@given(st.lists(st.tuples(st.integers(0, 2047), st.binary(min_size=32, max_size=32)), max_size=12))
def test_changes_give_what_all_of_it_gives(changes: list[tuple[int, bytes]]) -> None:
    table = Table()
    held: dict[int, bytes] = {}
    for slot, value in changes:
        if slot in held:
            table.free(slot)
            del held[slot]
        else:
            table.take(slot)
            table.set(slot, value)
            held[slot] = value
        assert table.digest == whole(table.inners)
    assert dict(table.filled()) == {slot: value for slot, value in held.items() if any(value)}
    for slot in range(table.slots):
        assert table.inner(slot) == held.get(slot, EMPTY)


def test_full_table_doubles_and_keeps_what_it_holds() -> None:
    table = Table()
    assert table.slots == 1024
    taken = {table.take() for _ in range(1024)}
    assert taken == set(range(1024))
    for slot in taken:
        table.set(slot, slot.to_bytes(32, "big"))
    before = table.inners
    more = table.take()
    assert more >= 1024
    assert table.slots == 2048
    assert table.inners == before + bytes(1024 * 32)
    assert table.digest == whole(table.inners)


def test_a_slot_that_is_beyond_makes_the_table_large_enough() -> None:
    table = Table()
    assert table.take(5000) == 5000
    assert table.slots == 8192
    with pytest.raises(ValueError, match="taken"):
        table.take(5000)


def test_slots_are_random() -> None:
    firsts = {Table().take() for _ in range(40)}
    assert len(firsts) > 20


@pytest.mark.parametrize("slots", [0, 1, 2, 512, 1023, 1025])
def test_number_of_slots(slots: int) -> None:
    with pytest.raises(ValueError, match="power of two"):
        Table(slots)


def test_only_a_taken_slot_is_set() -> None:
    with pytest.raises(ValueError, match="not taken"):
        Table().set(3, bytes(32))
