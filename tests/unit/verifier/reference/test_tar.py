"""The reader against Python's own writer and GNU's forms, and against damaged archives."""

import io
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cima_runc.base import limits
from cima_runc.verifier.reference.tar import Member, TarError, parse_pax, read_tar
from tests.support.oci import BLOCK, archive, header, member, pad, pax


def read(data: bytes) -> list[tuple[Member, bytes]]:
    return [(each, b"".join(each.content())) for each in read_tar(io.BytesIO(data))]


def names(data: bytes) -> list[bytes]:
    return [each.name for each, _ in read(data)]


PATHS = st.text(
    st.characters(codec="utf-8", exclude_characters="\0/"), min_size=1, max_size=120
).filter(lambda name: name not in {".", ".."})


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            PATHS,
            st.binary(max_size=1500),
            st.integers(0, 0o7777),
            st.integers(0, 2**40),
            st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
        ),
        max_size=5,
    )
)
def test_what_python_writes(files: list[tuple[str, bytes, int, int, int]]) -> None:
    data = b""
    for path, content, mode, uid, form in files:
        info = tarfile.TarInfo(path)
        info.size, info.mode, info.uid, info.mtime = len(content), mode, uid, 1.5
        data += info.tobuf(form, "utf-8", "surrogateescape") + pad(content)
    found = read(data + bytes(2 * BLOCK))
    assert [(each.name, content, each.mode, each.uid) for each, content in found] == [
        (path.encode(), content, mode, uid) for path, content, mode, uid, _ in files
    ]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_type(form: int) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as writer:
        for number, kind in enumerate(
            (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE)
        ):
            info = tarfile.TarInfo(f"x{number}")
            info.type, info.linkname, info.devmajor, info.devminor = kind, "target", 4095, 70000
            writer.addfile(info)
    found = [each for each, _ in read(out.getvalue())]
    assert [each.type for each in found] == [b"5", b"2", b"1", b"3", b"6"]
    assert found[1].link == found[2].link == b"target"
    assert (found[3].major, found[3].minor) == (4095, 70000)


def test_long_names() -> None:
    long = b"/".join([b"d" * 60] * 5)
    gnu = header(b"././@LongLink", b"L", len(long) + 1) + pad(long + b"\0")
    gnu += header(b"././@LongLink", b"K", len(long) + 1) + pad(long + b"\0")
    data = archive(
        gnu + member("short", kind=b"2", link="short"),
        member("next", b"x"),
        member(long, kind=b"2", link=long),
        header(b"name", prefix=b"prefix"),
    )
    assert names(data) == [long, b"next", long, b"prefix/name"]
    assert [each.link for each, _ in read(data)][:3] == [long, b"", long]


def test_extended_attributes_keep_their_bytes() -> None:
    value = bytes(range(256))
    (found,) = (
        each for each, _ in read(archive(member("f", xattrs={"security.capability": value})))
    )
    assert found.xattrs == {"security.capability": value}


def test_an_extended_header_is_for_one_member() -> None:
    data = archive(member("a", records={"path": b"b", "uid": b"7"}), member("c"))
    assert [(each.name, each.uid) for each, _ in read(data)] == [(b"b", 7), (b"c", 0)]


def test_a_global_header_says_nothing_of_members() -> None:
    """Go's reader, which engines use, gives it to the caller, who leaves it; Python obeys it."""
    body = pax({"path": b"evil", "size": b"1"})
    globally = header(b"g", b"g", len(body)) + pad(body)
    assert names(archive(globally, member("a", b"xyz"), member("b"))) == [b"a", b"b"]
    body = pax({"path": b"lost"})
    before = header(b"x", b"x", len(body)) + pad(body)
    assert names(archive(before, globally, member("a"))) == [b"a"]


def test_size_in_an_extended_header() -> None:
    content = b"x" * 1000
    data = archive(member("a", content, size=0, records={"size": b"1000"}), member("b"))
    assert [(each.name, found) for each, found in read(data)] == [(b"a", content), (b"b", b"")]


@pytest.mark.parametrize("kind", [b"1", b"2", b"3", b"4", b"5", b"6"])
def test_what_is_not_a_file_has_no_content(kind: bytes) -> None:
    """Whatever its size field says: what follows is the next header."""
    assert names(archive(member("a", kind=kind, size=512), member("b"))) == [b"a", b"b"]


def test_directories_before_posix() -> None:
    found = [each for each, _ in read(archive(member("d/", kind=b"\0"), member("f/", kind=b"0")))]
    assert [each.type for each in found] == [b"5", b"0"]


def test_a_prefix_in_a_gnu_header() -> None:
    """Go before 1.8 put one where GNU tar has times: obeyed if it cannot be times."""
    gnu = b"ustar  \0"
    assert names(archive(header(b"name", magic=gnu, prefix=b"long/path"))) == [b"long/path/name"]
    assert names(archive(header(b"name", magic=gnu, prefix=b"13573321430 13573321430 "))) == [
        b"name"
    ]


def test_contents_need_not_be_read() -> None:
    data = archive(member("a", b"x" * 5000), member("b", b"y"))
    assert [each.name for each in read_tar(io.BytesIO(data))] == [b"a", b"b"]
    iterator = read_tar(io.BytesIO(data))
    assert len(next(next(iterator).content())) == 5000
    assert next(iterator).name == b"b"


def test_small_reads() -> None:
    class Slow(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return super().read(min(size or 0, 7))

    data = archive(member("a" * 150, b"x" * 5000), member("b", b"y"))
    found = [(each.name, b"".join(each.content())) for each in read_tar(Slow(data))]
    assert found == [(b"a" * 150, b"x" * 5000), (b"b", b"y")]


# The end.


def test_ends() -> None:
    body = member("a")
    assert names(body) == [b"a"]  # Go takes a missing end
    assert names(body + bytes(BLOCK)) == [b"a"]
    assert names(body + bytes(2 * BLOCK) + member("b")) == [b"a"]
    assert names(b"") == []
    with pytest.raises(TarError, match="after a block of zeros"):
        read(body + bytes(BLOCK) + member("b"))


@given(st.integers(0, 3583))
def test_cut_off(length: int) -> None:
    data = member("a" * 200, b"x" * 1000) + member("b", b"y")
    first = len(data) - 2 * BLOCK
    assert len(data) == 3584
    contents_end = (first - 24, len(data) - 511)  # what is missing behind them is padding
    if length == 0:
        wanted = []
    elif contents_end[0] <= length <= first:
        wanted = [b"a" * 200]
    elif contents_end[1] <= length:
        wanted = [b"a" * 200, b"b"]
    else:
        with pytest.raises(TarError):
            names(data[:length])
        return
    assert names(data[:length]) == wanted


@settings(max_examples=300)
@given(st.integers(0, 10 * BLOCK), st.integers(1, 255))
def test_a_changed_byte_is_an_error_or_another_archive(at: int, flip: int) -> None:
    data = bytearray(archive(member("a" * 120, b"x" * 600, xattrs={"user.x": b"y"}), member("b")))
    before = [(each, content) for each, content in read(bytes(data))]
    data[at % len(data)] ^= flip
    try:
        after = read(bytes(data))
    except TarError:
        return
    assert len(after) <= len(before)


@given(st.binary(max_size=3000))
def test_any_bytes(data: bytes) -> None:
    try:
        read(data)
    except TarError as error:
        assert str(error)


def with_uid(raw: bytes) -> bytes:
    block = bytearray(header(b"a"))
    block[108:116] = raw
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def sparse(mapping: bytes, size: bytes = b"9", kind: bytes = b"0") -> bytes:
    records = {"GNU.sparse.map": mapping, "GNU.sparse.size": size}
    return member("a", b"x", kind=kind, records=records)


def sparse_1(content: bytes) -> bytes:
    records = {"GNU.sparse.major": b"1", "GNU.sparse.minor": b"0", "GNU.sparse.realsize": b"9"}
    return member("a", content, records=records)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (header(b"x", b"x", limits.TAR_HEADER + 1), "extended header of"),
        (header(b"x", b"L", 2**60), "extended header of"),
        (header(b"a", b"0", 2**62), "ends in the middle"),
        (with_uid(b"\xff" * 8), "negative"),
        (with_uid(b"12345x7\0"), "not a number"),
        (member("a", records={"size": b"-1"}), "not a number"),
        (member("a", records={"uid": b"1e9"}), "not a number"),
        (member("a", records={"size": b"9" * 19}), "too large"),
        (member("a", records={"path": b"x\0y"}), "zero byte"),
        (member("a", records={"GNU.sparse.map": b"0,1"}), "without its size"),
        (sparse(b"0,1,2"), "pairs"),
        (sparse(b"5,1,0,1"), "order"),
        (sparse(b"0,10"), "beyond"),
        (sparse(b"0,9"), "another length"),
        (sparse(b"0,0"), "another length"),
        (sparse(b"", kind=b"5"), "not a regular file"),
        (member("a", records={"GNU.sparse.size": b"9", "GNU.sparse.major": b"7"}), "unknown form"),
        (sparse_1(pad(b"9999999\n")), "too long"),
        (sparse_1(b"3\n" + bytes(5)), "cut off"),
        (header(b"x", b"x", 512) + b"7 a=b".ljust(512, b"\0"), "LENGTH KEY=VALUE"),
        (header(b"x", b"x", 512) + b"x y=" * 128, "not a number"),
    ],
)
def test_hostile_archives(data: bytes, reason: str) -> None:
    with pytest.raises(TarError, match=reason):
        read(data)


def test_a_header_without_its_member() -> None:
    body = pax({"path": b"x"})
    with pytest.raises(TarError, match="between an extended header and its member"):
        read(archive(header(b"x", b"x", len(body)) + pad(body)))


def test_a_wrong_checksum() -> None:
    data = bytearray(archive(member("a")))
    data[0] = ord("b")
    with pytest.raises(TarError, match="checksum"):
        read(bytes(data))


# Extended headers.


@given(st.dictionaries(st.text(min_size=1).filter(lambda k: "=" not in k), st.binary(min_size=1)))
def test_pax_round_trip(records: dict[str, bytes]) -> None:
    records = {k: v for k, v in records.items() if k not in {"path", "linkpath"}}
    assert parse_pax(pax(records)) == {k.encode(): v for k, v in records.items()}


@pytest.mark.parametrize(
    "body",
    [b"5 a=\n6", b"0 a=b\n", b"4 a=\n", b"6 ab\n\n", b"7 =abc\n", b"8 a=b\n", b" a=b\n", b"99999"],
)
def test_damaged_pax(body: bytes) -> None:
    with pytest.raises(TarError):
        parse_pax(body)


# Sparse files.


def test_sparse_forms() -> None:
    """Nine bytes, of which two at 3 and one at 8 are there."""
    expected = bytes(3) + b"ab" + bytes(3) + b"c"
    old = bytearray(header(b"old", b"S", 3, magic=b"ustar  \0"))
    for number, (offset, size) in enumerate([(3, 2), (8, 1)]):
        at = 386 + 24 * number
        old[at : at + 24] = b"%011o\0%011o\0" % (offset, size)
    old[483:495] = b"%011o\0" % 9
    old[148:156] = b" " * 8
    old[148:156] = b"%06o\0 " % sum(old)
    numbers = [("GNU.sparse.offset", b"3"), ("GNU.sparse.numbytes", b"2"),
               ("GNU.sparse.offset", b"8"), ("GNU.sparse.numbytes", b"1")]  # fmt: skip
    body = pax({"GNU.sparse.size": b"9", "GNU.sparse.numblocks": b"2"})
    body += b"".join(pax({key: value}) for key, value in numbers)
    data = archive(
        bytes(old) + pad(b"abc"),
        header(b"x", b"x", len(body)) + pad(body) + member("pax00", b"abc"),
        member("pax01", b"abc", records={"GNU.sparse.size": b"9", "GNU.sparse.map": b"3,2,8,1"}),
        member(
            "GNUSparseFile.0/x",
            pad(b"2\n3\n2\n8\n1\n") + b"abc",
            records={
                "GNU.sparse.major": b"1",
                "GNU.sparse.minor": b"0",
                "GNU.sparse.name": b"pax10",
                "GNU.sparse.realsize": b"9",
            },
        ),
        member("after", b"x"),
    )
    assert [(each.name, each.type, each.size, content) for each, content in read(data)] == [
        (b"old", b"0", 9, expected),
        (b"pax00", b"0", 9, expected),
        (b"pax01", b"0", 9, expected),
        (b"pax10", b"0", 9, expected),
        (b"after", b"0", 1, b"x"),
    ]
    assert len(names(data)) == 5
