import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cima_runc.base import limits
from cima_runc.measure.xattrs import (
    ACL_ACCESS,
    ACL_DEFAULT,
    CAPABILITY,
    OPAQUE,
    XattrError,
    acl_access,
    acl_default,
    canonical,
    capability,
    is_wanted,
)

V2 = struct.pack("<IIIII", 0x02000001, 0x400, 0x1, 0x2, 0x3)
V3 = struct.pack("<IIIIII", 0x03000001, 0x400, 0x1, 0x2, 0x3, 100000)
V1 = struct.pack("<III", 0x01000001, 0x400, 0x1)


def acl(*entries: tuple[int, int, int], version: int = 2) -> bytes:
    return struct.pack("<I", version) + b"".join(struct.pack("<HHI", *each) for each in entries)


NO = 0xFFFFFFFF


def test_capability_of_a_user_namespace_is_that_of_none() -> None:
    assert capability(V3) == capability(V2) == V2


def test_capability_of_32_bits() -> None:
    assert capability(V1) == struct.pack("<IIIII", 0x02000001, 0x400, 0x1, 0, 0)


def test_effective_bit_is_kept() -> None:
    assert capability(V3[:0] + struct.pack("<I", 0x03000000) + V3[4:])[:4] == bytes.fromhex(
        "00000002"
    )


@pytest.mark.parametrize(
    "value", [b"", b"\1", V2[:-1], V3[:-1], V2 + b"\0", bytes(20), b"\0\0\0\4" * 5]
)
def test_damaged_capability(value: bytes) -> None:
    with pytest.raises(XattrError, match="revision"):
        capability(value)


def test_acl_follows_the_mode() -> None:
    before = acl((1, 7, 0), (2, 6, 1000), (4, 7, 0), (0x10, 7, 0), (0x20, 7, 0))
    after = acl((1, 6, NO), (2, 6, 1000), (4, 7, NO), (0x10, 4, NO), (0x20, 0, NO))
    assert acl_access(before, 0o640) == after
    assert acl_access(after, 0o640) == after


def test_acl_without_mask_follows_the_mode_in_the_group() -> None:
    assert acl_access(acl((1, 7, NO), (4, 7, NO), (0x20, 7, NO)), 0o640) is None


def test_default_acl() -> None:
    assert acl_default(acl((1, 7, 5), (8, 5, 7))) == acl((1, 7, NO), (8, 5, 7))


@pytest.mark.parametrize("value", [b"", b"\2\0\0", acl((1, 7, 0), version=1), acl((1, 7, 0))[:-1]])
def test_damaged_acl(value: bytes) -> None:
    with pytest.raises(XattrError, match="version 2"):
        acl_access(value, 0)
    with pytest.raises(XattrError, match="version 2"):
        acl_default(value)


def test_what_is_kept() -> None:
    raw = [
        ("user.x", b"1"),
        ("security.selinux", b"label"),
        ("trusted.overlay.opaque", b"y"),
        ("trusted.overlay.origin", b"1"),
        ("trusted.overlay.redirect", b"/x"),
        (CAPABILITY, V3),
    ]
    assert canonical(raw, 0o755) == ((CAPABILITY, V2),)
    assert canonical(raw, 0o755, "trusted.overlay.") == (
        (CAPABILITY, V2),
        OPAQUE,
        ("trusted.overlay.redirect", b"/x"),
    )
    assert canonical([("user.overlay.opaque", b"y")], 0, "user.overlay.") == (OPAQUE,)
    assert canonical([("trusted.overlay.opaque", b"y")], 0, "user.overlay.") == ()


def test_too_large() -> None:
    with pytest.raises(XattrError, match="bytes"):
        canonical([(ACL_DEFAULT, bytes(limits.XATTR + 1))], 0)


@given(
    st.lists(
        st.tuples(st.sampled_from([1, 2, 4, 8, 16, 32]), st.integers(0, 7), st.integers(0, NO))
    ),
    st.integers(0, 0o7777),
)
def test_acl_is_canonical_once(entries: list[tuple[int, int, int]], mode: int) -> None:
    once = canonical([(ACL_ACCESS, acl(*entries))], mode)
    assert canonical(once, mode) == once


@given(st.dictionaries(st.text(max_size=20), st.just(b"x")))
def test_wanted_is_all_that_is_kept(raw: dict[str, bytes]) -> None:
    raw = {
        name: value
        for name, value in raw.items()
        if name not in {CAPABILITY, ACL_ACCESS, ACL_DEFAULT}
    }
    raw |= {"trusted.overlay." + name: value for name, value in raw.items()}
    wanted = {name: value for name, value in raw.items() if is_wanted(name, "trusted.overlay.")}
    assert canonical(raw.items(), 0, "trusted.overlay.") == canonical(
        wanted.items(), 0, "trusted.overlay."
    )
