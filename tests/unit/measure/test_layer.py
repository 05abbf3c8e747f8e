"""Trees on a real filesystem, against a manifest made the plain way."""

import hashlib
import os
import socket
import stat
import struct
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cima_runc.base import limits
from cima_runc.measure import layer as layer_module
from cima_runc.measure.idmap import IDENTITY, IdMap, parse_id_maps
from cima_runc.measure.layer import (
    LayerError,
    LayerScan,
    fingerprint,
    ids_of,
    open_layer,
    scan,
)
from cima_runc.measure.mtree import (
    HEADER,
    Entry,
    digest,
    format_manifest,
    parse_manifest,
    sort_key,
    whiteout,
)
from cima_runc.measure.overlay import (
    FUSE_OVERLAYFS,
    OVERLAY,
    OVERLAY_USERXATTR,
    TREE,
    LayerDirectory,
    LayerForm,
)
from cima_runc.measure.xattrs import CAPABILITY, OPAQUE

NEEDS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
CAP = struct.pack("<IIIII", 0x02000001, 0x400, 0, 0, 0)


def measure(
    path: Path, form: LayerForm = TREE, ids: IdMap = IDENTITY
) -> tuple[list[Entry], LayerScan]:
    pieces: list[bytes] = []
    with open_layer(path) as root:
        found = scan(root, form, ids, pieces.append)
    manifest = b"".join(pieces)
    assert digest(manifest) == found.digest
    entries = parse_manifest(manifest)
    assert found.entries == len(entries) - 1
    assert found.files == sum(entry.type == "file" for entry in entries)
    assert found.bytes == sum(entry.size or 0 for entry in entries)
    return entries, found


def plain(path: Path) -> list[Entry]:
    """The manifest of a tree of files, directories, links and FIFOs, by os.walk."""
    entries = [Entry(b".", "dir")]
    base = os.fsencode(path)
    for folder, directories, files in os.walk(base):
        for name in directories + files:
            full = os.path.join(folder, name)
            own = os.path.relpath(full, base)
            found = os.lstat(full)
            mode, uid, gid = stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid
            if stat.S_ISLNK(found.st_mode):
                entries.append(Entry(own, "link", 0o777, uid, gid, link=os.readlink(full)))
            elif stat.S_ISDIR(found.st_mode):
                entries.append(Entry(own, "dir", mode, uid, gid))
            elif stat.S_ISREG(found.st_mode):
                content = Path(os.fsdecode(full)).read_bytes()
                sha256 = hashlib.sha256(content).digest()
                entries.append(Entry(own, "file", mode, uid, gid, size=len(content), sha256=sha256))
            else:
                entries.append(Entry(own, "fifo", mode, uid, gid))
    return sorted(entries, key=lambda entry: sort_key(entry.path))


NAMES = st.binary(min_size=1, max_size=20).filter(
    lambda name: b"/" not in name and b"\0" not in name and name not in {b".", b".."}
)


@settings(max_examples=40, deadline=None)
@given(
    st.recursive(
        st.one_of(
            st.binary(max_size=3000),
            st.tuples(st.just("link"), st.binary(min_size=1, max_size=30)),
            st.tuples(st.just("fifo"), st.integers(0, 0o7777)),
        ),
        lambda children: st.dictionaries(NAMES, children, max_size=6),
        max_leaves=30,
    ).filter(lambda tree: isinstance(tree, dict))
)
def test_any_tree(tree: dict) -> None:
    def make(base: bytes, children: dict) -> None:
        for name, child in children.items():
            path = os.path.join(base, name)
            if isinstance(child, dict):
                os.mkdir(path)
                make(path, child)
            elif isinstance(child, bytes):
                Path(os.fsdecode(path)).write_bytes(child)
            elif child[0] == "link":
                os.symlink(child[1].replace(b"\0", b"0"), path)
            else:
                os.mkfifo(path)
                os.chmod(path, child[1])

    with tempfile.TemporaryDirectory() as base:
        make(os.fsencode(base), tree)
        entries, found = measure(Path(base))
        assert entries == plain(Path(base))
        assert not found.changed_count


def test_more_files_than_are_on_their_way_at_once(tmp_path: Path) -> None:
    for number in range(40):
        folder = tmp_path / f"d{number}" / "deeper"
        folder.mkdir(parents=True)
        for each in range(40):
            (folder / f"f{each}").write_bytes(b"%d" % each * each)
    before = len(os.listdir("/proc/self/fd"))
    entries, _ = measure(tmp_path)
    assert entries == plain(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_an_empty_layer(tmp_path: Path) -> None:
    entries, _ = measure(tmp_path, OVERLAY)
    assert entries == [Entry(b".", "dir")]


def test_the_roots_own_attributes_are_the_engines(tmp_path: Path) -> None:
    _, before = measure(tmp_path)
    tmp_path.chmod(0o700)
    os.setxattr(tmp_path, "user.x", b"y")
    assert measure(tmp_path)[1] == before


def test_times_and_link_counts_are_not_measured(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x")
    (tmp_path / "g").write_bytes(b"x")
    _, before = measure(tmp_path)
    (tmp_path / "g").unlink()
    (tmp_path / "g").hardlink_to(tmp_path / "f")
    os.utime(tmp_path / "f", (1, 1))
    assert measure(tmp_path)[1] == before


def test_large_and_sparse_files(tmp_path: Path) -> None:
    content = os.urandom(3 * limits.MIB + 17)
    (tmp_path / "large").write_bytes(content)
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(64 * limits.MIB)
        file.seek(40 * limits.MIB)
        file.write(b"x")
    assert measure(tmp_path)[0] == plain(tmp_path)


@NEEDS_ROOT
def test_special_files_are_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo", 0o600)
    os.mknod(tmp_path / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(tmp_path / "nodriver", stat.S_IFBLK | 0o660, os.makedev(4000, 77777))
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.fspath(tmp_path / "socket"))
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "out").symlink_to("/etc/passwd")
    os.chmod(tmp_path / "null", 0o666)
    os.chmod(tmp_path / "nodriver", 0o660)
    entries, _ = measure(tmp_path)
    assert {entry.path: (entry.type, entry.device, entry.link) for entry in entries[1:]} == {
        b"fifo": ("fifo", None, None),
        b"null": ("char", (1, 3), None),
        b"nodriver": ("block", (4000, 77777), None),
        b"socket": ("socket", None, None),
        b"loop": ("link", None, b"loop"),
        b"out": ("link", None, b"/etc/passwd"),
    }


@NEEDS_ROOT
def test_capabilities_of_any_namespace(tmp_path: Path) -> None:
    """Revision 3, which the kernel makes of revision 2 in a user namespace, is measured as 2."""
    for name, value in (("v2", CAP), ("v3", CAP[:3] + b"\3" + CAP[4:] + struct.pack("<I", 100000))):
        (tmp_path / name).write_bytes(b"")
        os.setxattr(tmp_path / name, CAPABILITY, value)
    entries, _ = measure(tmp_path)
    assert [entry.xattrs for entry in entries[1:]] == [((CAPABILITY, CAP),)] * 2


@NEEDS_ROOT
def test_access_control_lists(tmp_path: Path) -> None:
    acl = struct.pack("<I", 2) + b"".join(
        struct.pack("<HHI", *each)
        for each in [(1, 6, 2**32 - 1), (2, 4, 1000), (4, 4, 2**32 - 1), (16, 4, 2**32 - 1),
                     (32, 0, 2**32 - 1)]
    )  # fmt: skip
    (tmp_path / "f").touch()
    os.setxattr(tmp_path / "f", "system.posix_acl_access", acl)
    (entry,) = measure(tmp_path)[0][1:]
    assert entry.xattrs == (("system.posix_acl_access", acl),)
    assert entry.mode == 0o640


@NEEDS_ROOT
def test_other_attributes_do_not_count(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    _, before = measure(tmp_path, OVERLAY)
    for name in ("user.x", "trusted.x", "trusted.overlay.origin", "security.selinux"):
        os.setxattr(tmp_path / "f", name, b"y")
    assert measure(tmp_path, OVERLAY)[1] == before


# Whiteouts and opaque directories, in each form that a layer can have.


def overlay_layer(base: Path, prefix: str) -> Path:
    (base / "d/sub").mkdir(parents=True)
    (base / "d/f").write_bytes(b"x")
    os.mknod(base / "d/gone", stat.S_IFCHR, 0)
    os.setxattr(base / "d", prefix + "opaque", b"y")
    os.setxattr(base / "d/sub", prefix + "origin", b"\0\1")
    return base


EXPECTED = [
    Entry(b".", "dir"),
    Entry(b"d", "dir", 0o755, 0, 0, xattrs=(OPAQUE,)),
    Entry(b"d/f", "file", 0o644, 0, 0, size=1, sha256=hashlib.sha256(b"x").digest()),
    whiteout(b"d/gone"),
    Entry(b"d/sub", "dir", 0o755, 0, 0),
]


@NEEDS_ROOT
@pytest.mark.parametrize(
    ("prefix", "form"), [("trusted.overlay.", OVERLAY), ("user.overlay.", OVERLAY_USERXATTR)]
)
def test_whiteouts_of_overlayfs(tmp_path: Path, prefix: str, form: LayerForm) -> None:
    assert measure(overlay_layer(tmp_path, prefix), form)[0] == EXPECTED


@NEEDS_ROOT
def test_attributes_that_the_mount_does_not_obey(tmp_path: Path) -> None:
    overlay_layer(tmp_path, "user.overlay.")
    assert not measure(tmp_path, OVERLAY)[0][1].is_opaque
    assert measure(tmp_path, TREE)[0][3] == Entry(b"d/gone", "char", 0, 0, 0, device=(0, 0))


@NEEDS_ROOT
@pytest.mark.parametrize(
    "attribute", ["trusted.overlay.opaque", "user.overlay.opaque", "user.fuseoverlayfs.opaque", ""]
)
def test_whiteouts_of_fuse_overlayfs(tmp_path: Path, attribute: str) -> None:
    (tmp_path / "d/sub").mkdir(parents=True)
    (tmp_path / "d/f").write_bytes(b"x")
    (tmp_path / "d/.wh.f").touch()  # removed, then made again
    (tmp_path / "d/.wh.gone").touch()
    if attribute:
        os.setxattr(tmp_path / "d", attribute, b"y")
    else:
        (tmp_path / "d/.wh..wh..opq").touch()
        os.mknod(tmp_path / "d/.wh..opq", stat.S_IFCHR)
    os.setxattr(tmp_path / "d/sub", "user.fuseoverlayfs.origin", b"x")
    assert measure(tmp_path, FUSE_OVERLAYFS)[0] == EXPECTED


@NEEDS_ROOT
def test_the_root_can_be_opaque(tmp_path: Path) -> None:
    os.setxattr(tmp_path, "trusted.overlay.opaque", b"y")
    assert measure(tmp_path, OVERLAY)[0] == [Entry(b".", "dir", xattrs=(OPAQUE,))]
    assert measure(tmp_path, TREE)[0] == [Entry(b".", "dir")]


@NEEDS_ROOT
def test_a_file_that_is_only_called_like_a_whiteout(tmp_path: Path) -> None:
    (tmp_path / ".wh.f").write_bytes(b"x")
    (entry,) = measure(tmp_path, OVERLAY)[0][1:]
    assert (entry.path, entry.type) == (b".wh.f", "file")


@NEEDS_ROOT
def test_what_redirects_the_merged_tree_is_measured(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    _, before = measure(tmp_path, OVERLAY)
    os.setxattr(tmp_path / "d", "trusted.overlay.redirect", b"/evil")
    assert measure(tmp_path, OVERLAY)[1].digest != before.digest


@NEEDS_ROOT
def test_owners_and_modes_kept_in_an_attribute(tmp_path: Path) -> None:
    os.setxattr(tmp_path, "user.containers.override_stat", b"0:0:0755:dir")
    for name, value in (
        ("file", b"1000:5:04755:file"),
        ("device", b"0:6:0660:block-8-1"),
        ("fifo", b"0:0:0622:pipe"),
    ):
        (tmp_path / name).write_bytes(b"x" if name == "file" else b"")
        os.setxattr(tmp_path / name, "user.containers.override_stat", value)
    (tmp_path / "d").mkdir(0o700)
    os.setxattr(tmp_path / "d", "user.containers.override_stat", b"7:8:01777:dir")
    assert measure(tmp_path, FUSE_OVERLAYFS)[0] == [
        Entry(b".", "dir"),
        Entry(b"d", "dir", 0o1777, 7, 8),
        Entry(b"device", "block", 0o660, 0, 6, device=(8, 1)),
        Entry(b"fifo", "fifo", 0o622, 0, 0),
        Entry(b"file", "file", 0o4755, 1000, 5, size=1, sha256=hashlib.sha256(b"x").digest()),
    ]
    assert measure(tmp_path, OVERLAY)[0][3].mode == 0o644


# Owners.

SHIFTED = parse_id_maps(b"0 100000 65536\n", b"0 200000 65536\n")


@NEEDS_ROOT
def test_a_shifted_layer_measures_as_a_plain_one(tmp_path: Path) -> None:
    for base, uid, gid in ((tmp_path / "plain", 0, 0), (tmp_path / "shifted", 100000, 200000)):
        (base / "d").mkdir(parents=True)
        (base / "d/f").write_bytes(b"x")
        (base / "d/l").symlink_to("f")
        os.mkfifo(base / "d/p")
        for path, own in (("", 0), ("d", 0), ("d/f", 33), ("d/l", 7), ("d/p", 1)):
            os.chown(base / path, uid + own, gid + own, follow_symlinks=False)

    def shown(base: Path, is_idmapped: bool = False) -> LayerScan:
        directory = LayerDirectory(base, "lower", OVERLAY, is_idmapped)
        with open_layer(base) as root:
            return scan(root, OVERLAY, ids_of(root, directory, SHIFTED))

    assert shown(tmp_path / "plain") == shown(tmp_path / "shifted")
    assert shown(tmp_path / "shifted") != shown(tmp_path / "shifted", is_idmapped=True)
    os.chown(tmp_path / "shifted/d/f", 5, 5)  # an owner that the namespace does not have
    found, _ = measure(tmp_path / "shifted", OVERLAY, SHIFTED)
    assert (found[2].uid, found[2].gid) == (65534, 65534)


# Changes while the walk goes on.


def test_a_file_that_changes_while_it_is_hashed(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    large = tmp_path / "large"
    large.write_bytes(bytes(64 * limits.MIB))

    def check() -> None:
        with large.open("r+b") as file:
            file.write(b"!")

    with open_layer(tmp_path) as root:
        found = scan(root, TREE, IDENTITY, check=check)
    assert found.changed == ["./large"]
    assert found.changed_count == 1


def test_a_file_that_grows_and_one_that_shrinks(tmp_path: Path) -> None:
    for name in ("grows", "shrinks"):
        (tmp_path / name).write_bytes(bytes(40 * limits.MIB))
    once = threading.Event()

    def check() -> None:
        if not once.is_set():
            once.set()
            os.truncate(tmp_path / "grows", 50 * limits.MIB)
            os.truncate(tmp_path / "shrinks", 1)

    pieces: list[bytes] = []
    with open_layer(tmp_path) as root:
        (tmp_path / "grows").touch()
        found = scan(root, TREE, IDENTITY, pieces.append, check)
    assert parse_manifest(b"".join(pieces))
    assert found.changed_count <= 2


def test_what_vanishes_between_listing_and_opening_is_reported(tmp_path: Path) -> None:
    for number in range(5000):
        (tmp_path / f"{number:05}").touch()
    (tmp_path / "00000").write_bytes(b"x")
    calls = 0

    def check() -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            (tmp_path / "04999").unlink()
            (tmp_path / "04998").unlink()
            (tmp_path / "04998").symlink_to("/etc/shadow")

    with open_layer(tmp_path) as root:
        found = scan(root, TREE, IDENTITY, check=check)
    assert "./04999" in found.changed
    assert "." in found.changed
    assert found.changed_count == 2


def test_many_changes_are_counted(tmp_path: Path) -> None:
    for number in range(5000):
        (tmp_path / f"{number:05}").touch()

    def check() -> None:
        for number in range(4000, 5000):
            (tmp_path / f"{number:05}").unlink(missing_ok=True)

    with open_layer(tmp_path) as root:
        found = scan(root, TREE, IDENTITY, check=check)
    assert found.changed_count == 1001
    assert len(found.changed) == layer_module.CHANGED_KEPT


@pytest.mark.parametrize("size", [0, 100 * limits.MIB])
def test_check_ends_the_walk(tmp_path: Path, size: int) -> None:
    with (tmp_path / "f").open("wb") as file:
        file.truncate(size)

    class Stop(Exception):
        pass

    def check() -> None:
        raise Stop

    before = len(os.listdir("/proc/self/fd"))
    with open_layer(tmp_path) as root, pytest.raises(Stop):
        scan(root, TREE, IDENTITY, check=check)
    with open_layer(tmp_path) as root, pytest.raises(Stop):
        fingerprint(root, check)
    assert len(os.listdir("/proc/self/fd")) == before
    assert not [t for t in threading.enumerate() if t.name.startswith("cima-layer")]


def test_an_error_of_the_writer_ends_the_walk(tmp_path: Path) -> None:
    for number in range(1000):
        (tmp_path / str(number)).write_bytes(bytes(10000))
    calls = 0

    def write(_data: bytes) -> None:
        nonlocal calls
        calls += 1
        if calls > 3:
            raise OSError(28, "No space left on device")

    before = len(os.listdir("/proc/self/fd"))
    with open_layer(tmp_path) as root, pytest.raises(LayerError, match="No space left"):
        scan(root, TREE, IDENTITY, write)
    assert len(os.listdir("/proc/self/fd")) == before


# Limits and errors.


def test_too_deep(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    for _ in range(limits.LAYER_DEPTH):
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    assert measure(tmp_path)[1].entries == limits.LAYER_DEPTH
    os.mkdir("d", dir_fd=fd)
    os.close(fd)
    for attempt in (measure, _fingerprint):
        with pytest.raises(LayerError, match="levels"):
            attempt(tmp_path)
    subprocess.run(["rm", "-rf", tmp_path / "d"], check=True)


def _fingerprint(path: Path) -> layer_module.Fingerprint:
    with open_layer(path) as root:
        return fingerprint(root)


def test_too_long_a_path(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    for _ in range(16):
        os.mkdir("d" * 255, dir_fd=fd)
        below = os.open("d" * 255, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    assert measure(tmp_path)[1].entries == 16  # 4095 bytes
    os.mkdir("x", dir_fd=fd)
    os.close(fd)
    with pytest.raises(LayerError, match="more than 4095 bytes"):
        measure(tmp_path)
    subprocess.run(["rm", "-rf", tmp_path / ("d" * 255)], check=True)


def test_too_many_entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(30):
        (tmp_path / str(number)).touch()
    monkeypatch.setattr(layer_module._Budget.__init__, "__defaults__", (20, 0))
    with pytest.raises(LayerError, match="entries"):
        measure(tmp_path)
    with pytest.raises(LayerError, match="entries"):
        _fingerprint(tmp_path)


def test_too_many_names_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(30):
        (tmp_path / str(number)).touch()
    monkeypatch.setattr(limits, "LAYER_NAMES", 64 * 20)
    with pytest.raises(LayerError, match="names"):
        measure(tmp_path)


def test_not_a_directory(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    (tmp_path / "l").symlink_to(tmp_path)
    for name in ("f", "l", "nothing"):
        with pytest.raises(LayerError), open_layer(tmp_path / name):
            pass


@NEEDS_ROOT
def test_nothing_mounted_inside_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/below").touch()
    expected = measure(tmp_path)
    subprocess.run(["mount", "-t", "tmpfs", "none", tmp_path / "d"], check=True)
    try:
        (tmp_path / "d/above").touch()
        assert measure(tmp_path) == expected
        # Without the right to copy the mount, a layer with mounts in it is refused.
        monkeypatch.setattr(layer_module, "_SYS_OPEN_TREE", -1)
        with pytest.raises(LayerError, match="mounted inside"):
            measure(tmp_path)
    finally:
        subprocess.run(["umount", tmp_path / "d"], check=True)
    assert measure(tmp_path) == expected


# Fingerprints.


def test_a_fingerprint_is_of_every_entry(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/f").write_bytes(b"x")
    (tmp_path / "d/l").symlink_to("f")
    seen = {_fingerprint(tmp_path).digest}
    assert _fingerprint(tmp_path).digest in seen

    def is_new() -> bool:
        found = _fingerprint(tmp_path).digest
        new = found not in seen
        seen.add(found)
        return new

    steps = (
        lambda: (tmp_path / "d/f").write_bytes(b"y"),
        lambda: os.utime(tmp_path / "d/f", ns=(0, 0)),
        lambda: os.utime(tmp_path / "d/l", ns=(0, 0), follow_symlinks=False),
        lambda: (tmp_path / "d/f").chmod(0o600),
        lambda: (tmp_path / "d/f").rename(tmp_path / "d/g"),
        lambda: (tmp_path / "d/g").rename(tmp_path / "g"),
        lambda: os.setxattr(tmp_path / "g", "user.x", b"x"),
        (tmp_path / "d/.hidden").touch,
        (tmp_path / "d/.hidden").unlink,
        lambda: os.setxattr(tmp_path, "user.overlay.opaque", b"y"),
    )
    for step in steps:
        time.sleep(0.02)  # the kernel's clock for files ticks every few milliseconds
        step()
        assert is_new()


@pytest.mark.parametrize("name", ["f", "."])
def test_the_newest_time_of_a_tree(tmp_path: Path, name: str) -> None:
    (tmp_path / "f").touch()
    future = time.time_ns() + 10**15
    os.utime(tmp_path / name, ns=(0, future))
    assert _fingerprint(tmp_path).newest == future


def test_header_is_the_formats() -> None:
    assert format_manifest([]) == HEADER
