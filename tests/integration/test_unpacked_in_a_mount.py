"""Layers that are unpacked into the mount of those below them, as overlayfs then makes them."""

import io
import os
import random
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import oci

from cima_runc.measure.mtree import Entry, parse_manifest
from cima_runc.measure.overlay import read_rootfs
from cima_runc.measure.rootfs import Store, measure
from cima_runc.verifier.reference.flatten import Flattened
from cima_runc.verifier.reference.layer import entries, read_layer
from cima_runc.verifier.reference.mounted import mounted_entries
from cima_runc.verifier.reference.tar import Member, read_tar

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount")


@pytest.fixture(name="base")
def _base() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="cima-unpacked-", dir="/var/tmp") as name:
        yield Path(name)


def members(data: bytes) -> Iterator[Member]:
    return read_tar(io.BytesIO(data))


def unpack(data: bytes, root: Path) -> None:
    """By the rules of UnpackLayer in github.com/moby/go-archive (diff.go)."""
    own: set[Path] = set()
    for member in members(data):
        path = root / member.name.decode().strip("/")
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        if path.name == ".wh..wh..opq":
            for inner in list(path.parent.rglob("*")):
                if inner not in own:
                    remove(inner)
        elif path.name.startswith(".wh."):
            remove(path.with_name(path.name[len(".wh.") :]))
        else:
            if not (member.type == b"5" and path.is_dir() and not path.is_symlink()):
                remove(path)
            create(member, path, root)
            own.add(path)


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def create(member: Member, path: Path, root: Path) -> None:
    if member.type == b"5":
        path.mkdir(exist_ok=True)
    elif member.type == b"2":
        path.symlink_to(member.link.decode())
    elif member.type == b"1":
        os.link(root / member.link.decode(), path)
    else:
        path.write_bytes(b"".join(member.content()))
    os.lchown(path, member.uid, member.gid)
    if member.type != b"2":
        path.chmod(member.mode)


class Image:
    """An image whose layers are unpacked one into the mount of the others."""

    def __init__(self, base: Path) -> None:
        self._base = base
        self._store = Store.at(base / "store")
        self._lowers = [base / "none"]
        self._lowers[0].mkdir()
        self._below = Flattened()
        for name in ("m", "w"):
            (base / name).mkdir()

    def add(self, data: bytes) -> tuple[list[Entry], list[Entry]]:
        """Return the manifest of the next layer, as it is measured and as it should be."""
        upper = self._base / f"l{len(self._lowers)}"
        upper.mkdir()
        lowers = ":".join(map(str, reversed(self._lowers)))
        options = f"userxattr,lowerdir={lowers},upperdir={upper},workdir={self._base}/w"
        mount = self._base / "m"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, mount], check=True)
        try:
            unpack(data, mount)
            rootfs = read_rootfs(mount, Path("/proc/self/mountinfo").read_bytes())
            found = measure(rootfs, self._store).layers[-1].digest
        finally:
            subprocess.run(["umount", mount], check=True)
        self._lowers.append(upper)
        wanted = mounted_entries(read_layer(members(data)), self._below)
        assert wanted is not None
        self._below.add(wanted)
        with self._store.manifests.open(found) as manifest:
            return parse_manifest(manifest.read()), wanted


BELOW = oci.archive(
    oci.directory("var", 0o711, uid=7),
    oci.directory("var/cache", 0o750),
    oci.directory("var/cache/old"),
    oci.member("var/cache/old/f", b"old"),
    oci.member("var/cache/g", b"g"),
    oci.member("lib", kind=b"2", link="var"),
    oci.member("gone", b"gone"),
)


@pytest.mark.parametrize(
    "layer",
    [
        [oci.directory("new"), oci.directory("new/er"), oci.member("new/er/f")],
        [oci.member("var/cache/f", b"its directories are not listed")],
        [oci.directory("var", 0o700, gid=3), oci.directory("var/cache", 0o700)],
        [oci.member(".wh.gone"), oci.member(".wh.never"), oci.member("var/.wh.cache")],
        [oci.directory("lib"), oci.member("lib/f", b"a directory for a link")],
        [oci.member("var/.wh..wh..opq"), oci.member("var/f")],
        [
            oci.directory("var/cache", 0o700),
            oci.member("var/cache/.wh..wh..opq"),
            oci.directory("var/cache/old"),
            oci.member("var/cache/old/f", b"new"),
            oci.member("var/cache/x/f", b"its directory is not listed"),
        ],
        [oci.member(".wh.var"), oci.directory("var"), oci.member("var/f")],
        [oci.member("var"), oci.directory("var"), oci.member("var/f")],
        [oci.member("gone", b"x"), oci.member("same", kind=b"1", link="gone", mode=0o600)],
    ],
)
def test_as_overlayfs_makes_them(base: Path, layer: list[bytes]) -> None:
    image = Image(base)
    for data in (BELOW, oci.archive(*layer), oci.archive(oci.member("last"))):
        found, wanted = image.add(data)
        assert found == wanted


@pytest.mark.parametrize("seed", range(10))
def test_any_layers(base: Path, seed: int) -> None:
    chance = random.Random(seed)
    image = Image(base)
    image.add(BELOW)
    others = 0
    for _ in range(4):
        data = oci.archive(*any_layer(chance, "", 3))
        found, wanted = image.add(data)
        assert found == wanted
        others += found != entries(read_layer(members(data)))
    assert others


def any_layer(chance: random.Random, prefix: str, depth: int) -> Iterator[bytes]:
    """What a directory of a layer has, what it removes first."""
    if prefix and chance.random() < 0.2:
        yield oci.member(f"{prefix}.wh..wh..opq")
    names = ["var", "cache", "old", "gone", "lib", "f"]
    for name in chance.sample(names, chance.randint(1, len(names))):
        kind, path = chance.random(), prefix + name
        if kind < 0.2:
            yield oci.member(f"{prefix}.wh.{name}")
        elif kind < 0.4 or not depth:
            yield oci.member(path, chance.randbytes(9), mode=chance.choice([0o600, 0o4755]))
        else:
            yield oci.directory(path, chance.choice([0o700, 0o1777]), uid=chance.randint(0, 3))
            yield from any_layer(chance, f"{path}/", depth - 1)
