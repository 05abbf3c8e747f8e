import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cima_runc.ima import template
from cima_runc.ima.template import (
    Func,
    TemplateError,
    pack_cima_ng,
    pack_fields,
    unpack_cima_ng,
    unpack_fields,
)

paths = st.binary(min_size=1, max_size=4095).filter(lambda path: b"\0" not in path)


@given(st.lists(st.binary(max_size=300), max_size=8))
def test_fields_come_back(fields: list[bytes]) -> None:
    assert unpack_fields(pack_fields(fields)) == fields


@given(st.binary(max_size=400))
def test_any_bytes_are_fields_or_an_error(data: bytes) -> None:
    try:
        fields = unpack_fields(data)
    except TemplateError:
        return
    assert pack_fields(fields) == data


@given(st.binary(min_size=32, max_size=32), paths, st.integers(0, 2**32 - 1), st.sampled_from(Func))
def test_cima_ng_comes_back(digest: bytes, path: bytes, mntns: int, func: Func) -> None:
    assert unpack_cima_ng(pack_cima_ng(digest, path, mntns, func)) == (digest, path, mntns, func)


def test_cima_ng_is_written_as_the_design_says() -> None:
    data = pack_cima_ng(b"\xaa" * 32, b"/bin/a\nb", 4026532180, Func.BPRM_CHECK)

    expected = b""
    for field in (
        b"sha256:\0" + b"\xaa" * 32,
        b"/bin/a\nb\0",
        struct.pack("<I", 4026532180),
        b"BPRM_CHECK",
    ):
        expected += struct.pack("<I", len(field)) + field
    assert data == expected


@pytest.mark.parametrize(
    "fields",
    [
        [],
        [b"sha256:\0" + bytes(31), b"/a\0", bytes(4), b"BPRM_CHECK"],
        [b"sha1:\0" + bytes(32), b"/a\0", bytes(4), b"BPRM_CHECK"],
        [b"sha256:\0" + bytes(32), b"/a", bytes(4), b"BPRM_CHECK"],
        [b"sha256:\0" + bytes(32), b"/a\0b\0", bytes(4), b"BPRM_CHECK"],
        [b"sha256:\0" + bytes(32), b"/a\0", bytes(5), b"BPRM_CHECK"],
        [b"sha256:\0" + bytes(32), b"/a\0", bytes(4), b"CHECK"],
        [b"sha256:\0" + bytes(32), b"/a\0", bytes(4), b"BPRM_CHECK", b""],
    ],
)
def test_other_fields_are_refused(fields: list[bytes]) -> None:
    with pytest.raises(TemplateError):
        unpack_cima_ng(pack_fields(fields))


@given(st.binary(max_size=90), st.integers(0, 200), st.binary(max_size=3))
def test_both_ways_of_unpacking_are_one(path: bytes, at: int, other: bytes) -> None:
    whole = pack_cima_ng(b"\1" * 32, path.replace(b"\0", b"-"), 7, Func.MMAP_CHECK)
    for data in (whole, whole[:at] + other + whole[at + len(other) :], whole[:at], whole + other):
        at_once = template._unpack_at_once(data)
        try:
            with_words = template._unpack_with_words(data)
        except TemplateError:
            assert at_once is None
        else:
            assert at_once == with_words
