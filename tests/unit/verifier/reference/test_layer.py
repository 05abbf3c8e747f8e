"""What engines make of a layer's archive; the rules are checked against engines in integration."""

import io
import struct

import pytest

from cima_runc.base import limits
from cima_runc.measure.mtree import Entry, format_manifest, parse_manifest, whiteout
from cima_runc.measure.xattrs import CAPABILITY, OPAQUE
from cima_runc.verifier.reference.layer import (
    Engine,
    ImageLayerError,
    LayerTree,
    entries,
    may_lack_devices,
    read_layer,
)
from cima_runc.verifier.reference.tar import read_tar
from tests.support.oci import archive, directory, member, sha256

CAP = struct.pack("<IIIII", 0x02000001, 0x400, 0, 0, 0)


def tree(*members: bytes) -> LayerTree:
    return read_layer(read_tar(io.BytesIO(archive(*members))))


def layer(*members: bytes, engine: Engine = "docker") -> dict[bytes, Entry]:
    found = entries(tree(*members), engine)
    assert parse_manifest(format_manifest(found)) == found
    return {entry.path: entry for entry in found}


def link(name: str, target: str) -> bytes:
    return member(name, kind=b"2", link=target)


def content(data: bytes) -> bytes:
    return bytes.fromhex(sha256(data)[7:])


def test_every_type() -> None:
    found = layer(
        directory("./", 0o700, uid=9),
        directory("d/", 0o1777, uid=1, gid=2),
        member("./d/f", b"x", mode=0o104755),
        member("d/l", kind=b"2", link="../x", mode=0o600, uid=5),
        member("d/c", kind=b"3", device=(5, 1), mode=0o620),
        member("d/b", kind=b"4", device=(8, 0)),
        member("d/p", kind=b"6"),
    )
    assert list(found.values()) == [
        Entry(b".", "dir"),
        Entry(b"d", "dir", 0o1777, 1, 2),
        Entry(b"d/b", "block", 0o644, 0, 0, device=(8, 0)),
        Entry(b"d/c", "char", 0o620, 0, 0, device=(5, 1)),
        Entry(b"d/f", "file", 0o4755, 0, 0, size=1, sha256=content(b"x")),
        Entry(b"d/l", "link", 0o777, 5, 0, link=b"../x"),
        Entry(b"d/p", "fifo", 0o644, 0, 0),
    ]


def test_unlisted_directories() -> None:
    found = layer(member("a/b/f"), directory("a/c/d"), directory("a/b", 0o700))
    assert [(path, entry.mode) for path, entry in found.items() if entry.type == "dir"] == [
        (b".", None),
        (b"a", 0o755),
        (b"a/b", 0o700),
        (b"a/c", 0o755),
        (b"a/c/d", 0o755),
    ]


@pytest.mark.parametrize("name", ["/", "./", ".", "//"])
def test_the_root_under_any_name(name: str) -> None:
    assert layer(directory(name, 0o700), member("f")) == layer(member("f"))


def test_the_last_of_several_counts() -> None:
    found = layer(
        member("f", b"1"),
        member("f", b"2"),
        directory("d", 0o700),
        member("d/in"),
        directory("d", 0o711),
        directory("gone"),
        member("gone/in"),
        member("gone", b"file"),
        member("new", b"file"),
        directory("new"),
    )
    assert found[b"f"].sha256 == content(b"2")
    assert found[b"d"].mode == 0o711
    assert b"d/in" in found
    assert found[b"gone"].type == "file"
    assert b"gone/in" not in found
    assert found[b"new"].type == "dir"


def test_hard_links() -> None:
    found = layer(
        member("f", b"x", mode=0o600),
        member("d/g", kind=b"1", link="./f", mode=0o755, uid=7),
        member("l", kind=b"2", link="f"),
        member("m", kind=b"1", link="l", uid=3),
    )
    assert found[b"f"] == Entry(b"f", "file", 0o755, 7, 0, size=1, sha256=content(b"x"))
    assert found[b"d/g"].sha256 == content(b"x")
    assert found[b"m"] == Entry(b"m", "link", 0o777, 3, 0, link=b"f")
    assert found[b"l"].uid == 3


def test_replacing_one_name_leaves_the_other() -> None:
    found = layer(member("f", b"x"), member("g", kind=b"1", link="f"), member("f", b"y"))
    assert (found[b"f"].sha256, found[b"g"].sha256) == (content(b"y"), content(b"x"))


def test_hard_links_through_symbolic_ones() -> None:
    found = layer(
        directory("usr/bin"),
        member("bin", kind=b"2", link="usr/bin"),
        member("bin/sh", b"x"),
        member("sh", kind=b"1", link="bin/sh"),
    )
    assert found[b"usr/bin/sh"].sha256 == found[b"sh"].sha256 == content(b"x")


def test_capabilities_and_hard_links() -> None:
    """chown(2) takes them, and what the link's own header says comes back."""
    kept = (
        member("a", xattrs={CAPABILITY: CAP}),
        member("b", kind=b"1", link="a", xattrs={CAPABILITY: CAP}),
    )
    lost = (member("a", xattrs={CAPABILITY: CAP}), member("b", kind=b"1", link="a"))
    given_away = (member("a", xattrs={CAPABILITY: CAP}), member("b", kind=b"1", link="a", uid=1))
    for engine, expected in (("docker", ()), ("podman", ((CAPABILITY, CAP),))):
        assert layer(*kept, engine=engine)[b"b"].xattrs == ((CAPABILITY, CAP),)
        assert layer(*lost, engine=engine)[b"b"].xattrs == expected
        assert layer(*lost, engine=engine)[b"a"].xattrs == expected
        assert layer(*given_away, engine=engine)[b"b"].xattrs == ()
    again = (*lost, member("c", kind=b"1", link="a"))
    assert layer(*again, engine="podman")[b"c"].xattrs == ((CAPABILITY, CAP),)


def test_only_attributes_that_count() -> None:
    raw = {"user.x": b"1", "security.selinux": b"label", CAPABILITY: CAP}
    raw |= {"user.overlay.opaque": b"y", "user.overlay.redirect": b"/elsewhere"}
    assert layer(member("f", xattrs=raw))[b"f"].xattrs == ((CAPABILITY, CAP),)


def test_whiteouts() -> None:
    found = layer(
        directory("d"),
        member("d/.wh..wh..opq"),
        member("d/.wh.gone", uid=7),
        member("d/f"),
        member(".wh.x", mode=0o600),
        member("other/.wh..wh..opq"),
        member("null", kind=b"3", device=(0, 0)),
    )
    assert found[b"d"].xattrs == (OPAQUE,)
    assert found[b"other"] == Entry(b"other", "dir", 0o755, 0, 0, xattrs=(OPAQUE,))
    assert found[b"d/gone"] == whiteout(b"d/gone")
    assert found[b"x"] == whiteout(b"x")
    assert found[b"null"] == whiteout(b"null")
    assert b"d/f" in found


def test_a_whiteout_and_then_the_file_again() -> None:
    found = layer(member(".wh.f"), member("f", b"x"), member(".wh.d"), directory("d"))
    assert found[b"f"].sha256 == content(b"x")
    assert found[b"d"] == Entry(b"d", "dir", 0o755, 0, 0)  # as engines do it: not opaque


def test_the_root_can_be_opaque() -> None:
    assert layer(member(".wh..wh..opq"))[b"."].is_opaque


def test_what_is_removed_inside_of_what_is_removed() -> None:
    assert list(layer(member(".wh.d"), member("d/.wh.f"))) == [b".", b"d"]


def test_paths_through_symbolic_links_stay_inside() -> None:
    found = layer(
        member("up", kind=b"2", link="../../../.."),
        member("up/a"),
        member("abs", kind=b"2", link="/etc"),
        member("abs/passwd"),
        member("dangling", kind=b"2", link="not/there"),
        member("dangling/f"),
    )
    assert set(found) >= {b"a", b"etc/passwd", b"not/there/f"}


def test_below_containerd_takes_what_it_finds() -> None:
    bottom = {b"tmp": Entry(b"tmp", "dir", 0, 0, 0), b"opt": Entry(b"opt", "dir", 0o711, 0, 0)}
    above = {
        b"tmp": Entry(b"tmp", "dir", 0o1777, 0, 0),
        b"home": Entry(b"home", "dir", 0o700, 5, 6, xattrs=((CAPABILITY, CAP), OPAQUE)),
        b"was": whiteout(b"was"),
    }
    files = [member(f"{name}/f") for name in ("tmp", "home", "was", "opt", "new")]
    upper = tree(*files, directory("d"), member(".wh.x"))
    found = {entry.path: entry for entry in entries(upper, "containerd", [bottom, above])}
    assert found[b"tmp"].mode == 0o1777
    assert found[b"home"] == Entry(b"home", "dir", 0o700, 5, 6, xattrs=((CAPABILITY, CAP),))
    assert found[b"opt"].mode == 0o711
    assert found[b"was"].mode == found[b"new"].mode == 0o755
    assert found[b"x"] == whiteout(b"x")
    assert entries(upper, "podman", [bottom, above]) == entries(upper)


def test_at_the_bottom_containerd_has_no_whiteouts() -> None:
    found = layer(member("d/.wh..wh..opq"), member("d/.wh.f"), member("d/g"), engine="containerd")
    assert list(found) == [b".", b"d", b"d/g"]
    assert not found[b"d"].is_opaque


@pytest.mark.parametrize("engine", ["docker", "containerd", "podman"])
def test_without_roots_rights_there_are_no_devices(engine: Engine) -> None:
    """Sources: moby/go-archive and containers/storage (createTarFile), containerd (skipFile)."""
    made = tree(
        directory("dev"),
        member("dev/null", kind=b"3", device=(1, 3)),
        member("dev/sda", kind=b"4", device=(8, 0)),
        member("dev/log", kind=b"6"),
        member("raw", kind=b"3"),
        member(".wh.gone"),
    )
    below = [{b"usr": Entry(b"usr", "dir", 0o755, 0, 0)}]
    found = entries(made, engine, below, rootless=True)
    assert [each.path for each in found] == [b".", b"dev", b"dev/log", b"gone"]
    assert len(entries(made, engine, below)) == len(found) + 3
    assert may_lack_devices(made, below)


def test_devices_that_hide_something_are_not_left_out() -> None:
    """Without them it would be there again."""
    made = tree(member("sh", kind=b"3", device=(1, 3)), member("raw", kind=b"3"))
    for path in (b"sh", b"raw"):
        for below in (Entry(path, "file", size=0), Entry(path, "dir"), Entry(path, "link")):
            assert not may_lack_devices(made, [{path: below}, {}])
    assert may_lack_devices(made, [{b"sh": Entry(b"sh", "block", device=(8, 0))}])
    assert not may_lack_devices(tree(member(".wh.sh")), [])


def test_absolute_names_are_below_the_root() -> None:
    """Docker, containerd and Podman unpack them there."""
    names = ("etc/f", "l", ".wh.g")
    relative, absolute = (
        layer(member(f, b"x"), member(other, kind=b"1", link=f), member(gone))
        for f, other, gone in (names, ["/" + name for name in names])
    )
    assert relative == absolute


LONG = "/".join(["x" * 200] * 11)
DEEP = "/".join(["d"] * (limits.LAYER_DEPTH + 1))


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([member("/../x")], r"\.\."),
        ([member("../x")], r"\.\."),
        ([member("a/../../x")], r"\.\."),
        ([member("a/..")], r"\.\."),
        ([member("", records={"x": b"y"})], "without a name"),
        ([member(".", b"x")], "root is not a directory"),
        ([member("a"), member("a/b")], "not one"),
        ([member("a/.wh.b"), member(".wh.a")], "has the file that it removes"),
        ([member("f"), member(".wh.f")], "has the file that it removes"),
        ([member(".wh.a"), member("a/b")], "not one"),
        ([member(".wh.")], "not a whiteout"),
        ([member(".wh..")], "not a whiteout"),
        ([member(".wh...")], "not a whiteout"),
        ([member(".wh..wh.plnk")], "not a whiteout"),
        ([member("l", kind=b"1", link="below")], "does not have"),
        ([member("l", kind=b"1", link="l")], "does not have"),
        ([member("f"), member("f", kind=b"1", link="f")], "does not have"),
        ([directory("d"), member("l", kind=b"1", link="d")], "to the directory"),
        ([member("l", kind=b"1", link=".")], "does not have"),
        ([member("f"), member("l", kind=b"1", link="/../f")], r"\.\."),
        ([member("f"), member("l", kind=b"1", link="../f")], r"\.\."),
        ([member(".wh.f"), member("l", kind=b"1", link="f")], "does not have"),
        ([member("l", kind=b"1", link="no/f")], "not in this layer"),
        ([link("a", "b"), link("b", "a"), member("a/f")], "loop"),
        ([member("a", kind=b"2", link="a/a/a"), member("a/f")], "loop"),
        ([member("l", kind=b"2")], "symbolic link to 0"),
        ([member("l", kind=b"2", link="x" * 4096)], "symbolic link to 4096"),
        ([member("x", kind=b"7")], "type 7"),
        ([member("x", kind=b"V")], "type V"),
        ([member("c", kind=b"3", device=(4096, 0))], "device"),
        ([member("c", kind=b"3", device=(0, 1 << 20))], "device"),
        ([member("f", uid=2**32)], "owner"),
        ([member("f", gid=2**32 - 1)], "owner"),
        ([member("f", xattrs={"trusted.overlay.redirect": b"/evil"})], "overlayfs's own"),
        ([member("f", xattrs={CAPABILITY: b"x"})], "revision"),
        ([member("x" * 256)], "name of 256"),
        ([member("/".join(["x" * 200] * 21))], "path of"),
        ([member(DEEP)], "levels"),
        ([directory(LONG), link("l", LONG), directory("l/" + LONG)], "path of"),
    ],
)
def test_hostile_layers(members: list[bytes], reason: str) -> None:
    with pytest.raises(ImageLayerError, match=reason):
        tree(*members)


def test_links_that_grow_a_path() -> None:
    """Each link names the one before it many times: 50 of them would be 40**50 components."""
    links = [member("l0", kind=b"2", link="d/" * 1000)]
    links += [member(f"l{n}", kind=b"2", link=f"l{n - 1}/" * 40) for n in range(1, 50)]
    with pytest.raises(ImageLayerError):
        tree(directory("d"), *links, member("l49/f"))


def test_too_many_members(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LAYER_ENTRIES", 3)
    with pytest.raises(ImageLayerError, match="more than 3"):
        tree(*(member(str(n)) for n in range(4)))
