import contextlib
import hashlib
import io
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cima_runc.base import limits
from cima_runc.measure.mtree import (
    HEADER,
    ROOT,
    Entry,
    MtreeError,
    digest,
    escape,
    format_entry,
    format_manifest,
    format_mode,
    parse_manifest,
    read_manifest,
    sort_key,
    unescape,
    whiteout,
)
from cima_runc.measure.xattrs import OPAQUE

NAMES = st.one_of(
    st.binary(min_size=1, max_size=40),
    st.sampled_from(
        [b"a", b"a b", b"a\nb", b"#a", b"a\\", b"\xff\xfe", b"a=b", b"-", b".wh.x", b" "]
    ),
).filter(lambda name: b"/" not in name and b"\0" not in name and name not in {b".", b".."})
IDS = st.integers(0, 0xFFFFFFFE)
MODES = st.integers(0, 0o7777)
VALUES = st.binary(max_size=40)
XATTRS = st.lists(
    st.tuples(
        st.sampled_from(["security.capability", "system.posix_acl_access", "trusted.overlay.x=y"]),
        VALUES,
    ),
    unique_by=lambda item: item[0],
).map(lambda items: tuple(sorted(items)))


@st.composite
def entries(draw: st.DrawFn, path: bytes) -> Entry:
    kind = draw(st.sampled_from(["file", "link", "block", "char", "fifo", "socket", "whiteout"]))
    if kind == "whiteout":
        return whiteout(path)
    mode, uid, gid = draw(MODES), draw(IDS), draw(IDS)
    if kind == "link":
        target = draw(st.binary(min_size=1, max_size=60).filter(lambda raw: b"\0" not in raw))
        return Entry(path, "link", 0o777, uid, gid, link=target)
    xattrs = draw(XATTRS)
    if kind == "file":
        content = draw(VALUES)
        sha256 = hashlib.sha256(content).digest()
        return Entry(path, "file", mode, uid, gid, size=len(content), sha256=sha256, xattrs=xattrs)
    device = None
    if kind in {"block", "char"}:
        device = draw(st.integers(0, 0xFFF)), draw(st.integers(0, 0xFFFFF))
    return Entry(path, kind, mode, uid, gid, device=device, xattrs=xattrs)


@st.composite
def manifests(draw: st.DrawFn) -> list[Entry]:
    found = [draw(st.sampled_from([ROOT, Entry(b".", "dir", xattrs=(OPAQUE,))]))]
    directories = [b""]
    for _ in range(draw(st.integers(0, 12))):
        path = draw(st.sampled_from(directories)) + draw(NAMES)
        if any(entry.path == path for entry in found):
            continue
        if draw(st.booleans()):
            xattrs = draw(XATTRS)
            found.append(Entry(path, "dir", draw(MODES), draw(IDS), draw(IDS), xattrs=xattrs))
            directories.append(path + b"/")
        else:
            found.append(draw(entries(path)))
    return sorted(found, key=lambda entry: sort_key(entry.path))


@given(manifests())
def test_round_trip(found: list[Entry]) -> None:
    data = format_manifest(found)
    assert parse_manifest(data) == found
    assert data.isascii()
    assert data.count(b"\n") == len(found) + 1


@given(st.binary(max_size=200))
def test_escape_round_trip(raw: bytes) -> None:
    text = escape(raw)
    assert unescape(text) == raw
    assert not set(text) & set(" \t\n#*?[")


def test_longest_path() -> None:
    path = b"/".join([b"\n" * 255] * 15 + [b"\xff" * 255])
    assert len(path) == 4095
    parents = [Entry(path[: 256 * n - 1], "dir", 0, 0, 0) for n in range(1, 16)]
    found = [ROOT, *parents, Entry(path, "fifo", 0o7777, 1, 2)]
    assert parse_manifest(format_manifest(found)) == found
    with pytest.raises(MtreeError, match="4096 bytes"):
        parse_manifest(format_manifest([*found[:-1], Entry(path + b"x", "fifo", 0, 0, 0)]))


def test_known_bytes() -> None:
    """The format itself: a change of these bytes is a change of every reference value."""
    found = [
        Entry(b".", "dir", xattrs=(OPAQUE,)),
        Entry(b"a", "dir", 0o1777, 0, 0),
        Entry(b"a/f\n", "file", 0o4755, 1, 2, size=1, sha256=bytes(32), xattrs=(("x", b"v"),)),
        Entry(b"a/l", "link", 0o777, 0, 0, link=b"x y"),
        Entry(b"a-", "char", 0, 0, 5, device=(5, 1)),
        whiteout(b"b"),
    ]
    data = format_manifest(found)
    assert data == (
        b"#mtree cima-layer-1\n"
        b". type=dir xattr.trusted.overlay.opaque=eQ==\n"
        b"./a type=dir mode=01777 uid=0 gid=0\n"
        b"./a/f\\012 type=file mode=04755 uid=1 gid=2 size=1 sha256digest="
        + b"0"
        * 64
        + b" xattr.x=dg==\n"
        b"./a/l type=link link=x\\040y mode=0777 uid=0 gid=0\n"
        b"./a- type=char device=native,5,1 mode=0 uid=0 gid=5\n"
        b"./b type=char device=native,0,0\n"
    )
    assert digest(data) == "sha256:" + hashlib.sha256(data).hexdigest()


def test_order_is_by_component() -> None:
    paths = [b"a", b"a/b", b"a/b/c", b"a/b-", b"a-", b"a-/x", b"a.", b"aa", b"b"]
    assert sorted(paths, key=sort_key) == paths


def test_whiteout_is_not_a_device() -> None:
    assert whiteout(b"x").is_whiteout
    assert not Entry(b"x", "char", 0, 0, 0, device=(0, 0)).is_whiteout


GOOD = "./f type=file mode=0644 uid=0 gid=0 size=0 sha256digest=" + "0" * 64 + "\n"


@pytest.mark.parametrize(
    "lines",
    [
        "",
        "./a type=dir mode=0755 uid=0 gid=0\n",
        ". type=dir mode=0755\n",
        ". type=file\n",
        ". type=dir\n" + GOOD + GOOD,
        ". type=dir\n./b type=fifo mode=0 uid=0 gid=0\n./a type=fifo mode=0 uid=0 gid=0\n",
        ". type=dir\n./a/b type=fifo mode=0 uid=0 gid=0\n",
        ". type=dir\n./a type=fifo mode=0 uid=0 gid=0\n./a/b type=fifo mode=0 uid=0 gid=0\n",
        ". type=dir\n./a/../b type=fifo mode=0 uid=0 gid=0\n",
        ". type=dir\n./a//b type=fifo mode=0 uid=0 gid=0\n",
        ". type=dir\n/a type=fifo mode=0 uid=0 gid=0\n",
        ". type=dir\n./a\\000 type=fifo mode=0 uid=0 gid=0\n",
        ". type=dir\n./\\141 type=fifo mode=0 uid=0 gid=0\n",
        ". type=dir\n./a\\s type=fifo mode=0 uid=0 gid=0\n",
        ". type=dir\n./a type=fifo mode=00 uid=0 gid=0\n",
        ". type=dir\n./a type=fifo mode=0 uid=00 gid=0\n",
        ". type=dir\n./a type=fifo mode=010000 uid=0 gid=0\n",
        ". type=dir\n./a type=fifo mode=0 uid=4294967296 gid=0\n",
        ". type=dir\n./a type=fifo uid=0 mode=0 gid=0\n",
        ". type=dir\n./a  type=fifo mode=0 uid=0 gid=0\n",
        ". type=dir\n./a type=fifo mode=0 uid=0 gid=0 \n",
        ". type=dir\n./a type=fifo mode=0 uid=0 gid=0 uid=0\n",
        ". type=dir\n./a type=fifo mode=0 uid=0 gid=0 nlink=1\n",
        ". type=dir\n./a type=fifo mode=0 uid=0 gid=0",
        ". type=dir\n./a type=fifo mode=0 uid=0 gid=0 size=1\n",
        ". type=dir\n./a type=door mode=0 uid=0 gid=0\n",
        ". type=dir\n./a type=fifo mode=0 uid=0\n",
        ". type=dir\n./a type=link link=x mode=0755 uid=0 gid=0\n",
        ". type=dir\n./a type=char device=linux,1,1 mode=0 uid=0 gid=0\n",
        ". type=dir\n./a type=char device=native,1 mode=0 uid=0 gid=0\n",
        ". type=dir\n./a type=char device=native,4096,1 mode=0 uid=0 gid=0\n",
        ". type=dir\n" + GOOD.replace("0" * 64, "0" * 63),
        ". type=dir\n" + GOOD.replace("0" * 64, "A" * 64),
        ". type=dir\n" + GOOD.replace("\n", " xattr.b=eQ== xattr.a=eQ==\n"),
        ". type=dir\n" + GOOD.replace("\n", " xattr.a=eQ== xattr.a=eQ==\n"),
        ". type=dir\n" + GOOD.replace("\n", " xattr.a=eR==\n"),
        ". type=dir\n" + GOOD.replace("\n", " xattr.a=e\n"),
        ". type=dir\n# a comment\n",
        ". type=dir\n\n",
        ". type=dir\n./\xe9 type=fifo mode=0 uid=0 gid=0\n",
        ". type=dir\n./" + "a" * 256 + " type=fifo mode=0 uid=0 gid=0\n",
    ],
)  # fmt: skip
def test_refuses_what_is_not_canonical(lines: str) -> None:
    with pytest.raises(MtreeError):
        parse_manifest(HEADER + lines.encode("latin-1"))


def test_refuses_another_header() -> None:
    with pytest.raises(MtreeError, match="must begin"):
        parse_manifest(b"#mtree\n. type=dir\n")


def test_refuses_deep_trees() -> None:
    deep = [Entry(b"/".join([b"d"] * n), "dir", 0, 0, 0) for n in range(1, limits.LAYER_DEPTH + 1)]
    assert len(parse_manifest(format_manifest([ROOT, *deep]))) == limits.LAYER_DEPTH + 1
    deeper = Entry(b"/".join([b"d"] * (limits.LAYER_DEPTH + 1)), "dir", 0, 0, 0)
    with pytest.raises(MtreeError, match="levels"):
        parse_manifest(format_manifest([ROOT, *deep, deeper]))


def test_a_line_without_end_is_not_read_whole() -> None:
    stream = io.BytesIO(HEADER + b". type=dir " + b"x" * (4 * limits.MANIFEST_LINE))
    with pytest.raises(MtreeError, match="longer than"):
        list(read_manifest(stream))
    assert stream.tell() <= len(HEADER) + limits.MANIFEST_LINE + 1


@given(manifests(), st.data())
def test_no_two_manifests_of_the_same_entries(found: list[Entry], data: st.DataObject) -> None:
    """A changed byte is refused, or it is another layer."""
    manifest = bytearray(format_manifest(found))
    at = data.draw(st.integers(0, len(manifest) - 1))
    manifest[at] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(MtreeError):
        assert parse_manifest(bytes(manifest)) != found


def test_modes_are_as_go_writes_them() -> None:
    assert [format_mode(mode) for mode in (0, 0o7, 0o644, 0o4755)] == ["0", "07", "0644", "04755"]


def test_non_utf8_names_of_attributes() -> None:
    name = "trusted.overlay." + os.fsdecode(b"\xff")
    found = [ROOT, Entry(b"f", "fifo", 0, 0, 0, xattrs=((name, b""),))]
    assert parse_manifest(format_manifest(found)) == found
    assert "xattr.trusted.overlay.\\377= " not in format_entry(found[1])
