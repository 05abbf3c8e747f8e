"""Real overlay mounts: layers found from mountinfo, and measured as the kernel merges them."""

import os
import random
import shutil
import stat
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cima_runc.measure import rootfs as rootfs_module
from cima_runc.measure.idmap import IDENTITY
from cima_runc.measure.layer import open_layer, scan
from cima_runc.measure.mtree import Entry, format_manifest, parse_manifest, whiteout
from cima_runc.measure.overlay import TREE, RootFilesystem, read_rootfs
from cima_runc.measure.rootfs import Store, measure
from cima_runc.measure.xattrs import OPAQUE
from cima_runc.verifier.reference.flatten import Flattened

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount")
CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)


@pytest.fixture(name="base")
def _base() -> Iterator[Path]:
    """A directory on a filesystem that an overlay can be made of, and unmounted at the end."""
    with tempfile.TemporaryDirectory(prefix="cima-overlay-", dir="/var/tmp") as name:
        base = Path(name)
        yield base
        mounts = Path("/proc/self/mountinfo").read_bytes()
        if os.fsencode(base) in mounts:
            subprocess.run(["umount", base / "m"], check=True)


def mount(base: Path, lowers: list[Path], *options: str) -> RootFilesystem:
    for name in ("u", "w", "m"):
        (base / name).mkdir()
    text = ":".join(str(lower).replace("\\", "\\\\").replace(":", "\\:") for lower in lowers[::-1])
    values = [f"lowerdir={text}", f"upperdir={base}/u", f"workdir={base}/w", *options]
    command = ["mount", "-t", "overlay", "overlay", "-o", ",".join(values), base / "m"]
    subprocess.run(command, check=True)
    return found(base)


def found(base: Path) -> RootFilesystem:
    return read_rootfs(base / "m", Path("/proc/self/mountinfo").read_bytes())


def make_lower(path: Path) -> Path:
    for name in ("keep", "gone", "replaced", "opaque/in"):
        (path / name).mkdir(parents=True)
        (path / name / "file").write_bytes(name.encode())
    (path / "change").write_bytes(b"before")
    os.link(path / "change", path / "linked")
    (path / "removed").write_bytes(b"x")
    os.mkfifo(path / "fifo")
    os.mknod(path / "null", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    (path / "program").write_bytes(b"x")
    (path / "program").chmod(0o4755)
    os.setxattr(path / "program", "security.capability", CAPABILITY)
    return path


def merged(base: Path) -> bytes:
    pieces: list[bytes] = []
    with open_layer(base / "m") as root:
        scan(root, TREE, IDENTITY, pieces.append)
    return b"".join(pieces)


def flattened(rootfs: RootFilesystem, store: Store) -> bytes:
    flat = Flattened()
    for layer in measure(rootfs, store).layers:
        with store.manifests.open(layer.digest) as manifest:
            flat.add(parse_manifest(manifest.read()))
    return format_manifest([Entry(b".", "dir"), *(entry for entry, _ in flat)])


def test_whiteouts_that_the_kernel_makes(base: Path) -> None:
    rootfs = mount(base, [make_lower(base / "l")], "redirect_dir=off", "metacopy=off")
    assert [(layer.path, layer.role) for layer in rootfs.layers] == [
        (base / "l", "lower"),
        (base / "u", "upper"),
    ]
    top = base / "m"
    shutil.rmtree(top / "gone")
    (top / "removed").unlink()
    shutil.rmtree(top / "replaced")
    (top / "replaced").write_bytes(b"now a file")
    shutil.rmtree(top / "opaque")
    (top / "opaque").mkdir()
    (top / "opaque/new").write_bytes(b"x")
    (top / "change").write_bytes(b"after")
    (top / "keep/file").chmod(0o600)
    store = Store.at(base / "store")
    assert flattened(rootfs, store).splitlines() == merged(base).splitlines()
    with store.manifests.open(measure(rootfs, store).layers[-1].digest) as manifest:
        upper = {entry.path: entry for entry in parse_manifest(manifest.read())}
    assert upper[b"gone"] == whiteout(b"gone")
    assert upper[b"removed"] == whiteout(b"removed")
    assert OPAQUE in upper[b"opaque"].xattrs
    assert upper[b"replaced"].type == "file"
    assert set(upper) == {
        b".", b"gone", b"removed", b"opaque", b"opaque/new", b"replaced", b"change", b"keep",
        b"keep/file",
    }  # fmt: skip


@pytest.mark.parametrize("seed", range(10))
def test_random_changes(base: Path, seed: int) -> None:
    """The layers' manifests, put on each other, are the manifest of what the kernel merges."""
    chance = random.Random(seed)
    lowers = [make_lower(base / "l0")]
    for number in range(1, 4):
        lower = base / f"l{number}"
        lower.mkdir()
        for _ in range(6):
            path = lower / chance.choice(["keep", "gone", "x"]) / chance.choice(["a", "b", "file"])
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(chance.randbytes(10))
        lowers.append(lower)
    os.mknod(base / "l2/fifo", stat.S_IFCHR, 0)
    rootfs = mount(base, lowers, "redirect_dir=off", "metacopy=off")
    top = base / "m"
    for _ in range(25):
        entries = [path for path in top.rglob("*") if not path.is_symlink()]
        path = chance.choice(entries) if entries else top
        action = chance.choice(["remove", "write", "mkdir", "chmod", "rename", "link", "symlink"])
        new = (path if path.is_dir() else path.parent) / f"n{chance.randint(0, 4)}"
        if action == "remove" and path != top:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        elif action == "write" and path.is_file():
            path.write_bytes(chance.randbytes(20))
        elif action == "mkdir" and not new.exists():
            new.mkdir(0o700)
        elif action == "chmod":
            path.chmod(chance.choice([0o700, 0o1755, 0o4711]))
        elif action == "rename" and path.is_file() and not new.exists():
            path.rename(new)
        elif action == "link" and path.is_file() and not new.exists():
            os.link(path, new)
        elif action == "symlink" and not new.is_symlink() and not new.exists():
            new.symlink_to("/etc/passwd")
    store = Store.at(base / "store")
    assert flattened(rootfs, store).splitlines() == merged(base).splitlines()


def test_userxattr(base: Path) -> None:
    rootfs = mount(base, [make_lower(base / "l")], "userxattr")
    shutil.rmtree(base / "m/opaque")
    (base / "m/opaque").mkdir()
    assert os.getxattr(base / "u/opaque", "user.overlay.opaque") == b"y"
    store = Store.at(base / "store")
    assert flattened(rootfs, store).splitlines() == merged(base).splitlines()


def test_hostile_paths(base: Path) -> None:
    lowers = [make_lower(base / name) for name in ("a:b", "c d", "e\\f", "g\nh", "i#j")]
    rootfs = mount(base, lowers)
    assert [layer.path for layer in rootfs.layers[:-1]] == lowers


def test_relative_paths(base: Path) -> None:
    """As Docker and containerd mount what would not fit into a page."""
    for name in ("overlay2/a/diff", "overlay2/b/diff", "overlay2/c/work", "overlay2/l", "m"):
        (base / name).mkdir(parents=True)
    (base / "overlay2/c/diff").mkdir()
    (base / "overlay2/l/AA").symlink_to("../a/diff")
    (base / "overlay2/l/BB").symlink_to("../b/diff")
    for upper in ("c/diff", f"{base}/overlay2/c/diff"):
        point = base / "overlay2/c/merged"
        point.mkdir(exist_ok=True)
        options = f"lowerdir=l/BB:l/AA,upperdir={upper},workdir=c/work"
        command = ["mount", "-t", "overlay", "overlay", "-o", options, point]
        subprocess.run(command, check=True, cwd=base / "overlay2")
        try:
            rootfs = read_rootfs(point, Path("/proc/self/mountinfo").read_bytes())
        finally:
            subprocess.run(["umount", point], check=True)
        assert [layer.path for layer in rootfs.layers] == [
            base / f"overlay2/{name}/diff" for name in "abc"
        ]


def test_what_runc_mounts_above_it_changes_nothing(base: Path) -> None:
    rootfs = mount(base, [make_lower(base / "l")])
    before = measure(rootfs)
    subprocess.run(["mount", "--bind", base / "m", base / "m"], check=True)
    try:
        again = found(base)
        subprocess.run(["mount", "-t", "tmpfs", "none", base / "m/keep"], check=True)
        try:
            assert measure(again) == before
        finally:
            subprocess.run(["umount", base / "m/keep"], check=True)
    finally:
        subprocess.run(["umount", base / "m"], check=True)
    assert again == rootfs


def test_a_layer_changed_below_a_mount(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rootfs_module, "_quiet_since", lambda _newest: 1 << 62)
    rootfs = mount(base, [make_lower(base / "l")])
    store = Store.at(base / "store")
    before = measure(rootfs, store)
    assert measure(rootfs, store).layers[0].is_cached
    content = (base / "l/program").read_bytes()
    times = (base / "l/program").stat()
    subprocess.run(["sleep", "0.05"], check=True)
    (base / "l/program").write_bytes(content[:-1] + b"!")
    os.utime(base / "l/program", ns=(times.st_atime_ns, times.st_mtime_ns))
    after = measure(rootfs, store)
    assert after.layers[0].digest != before.layers[0].digest
    assert after.layers[1].digest == before.layers[1].digest
