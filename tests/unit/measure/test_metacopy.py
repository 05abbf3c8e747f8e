"""Files without data of their own: real overlay mounts where this machine allows them."""

import hashlib
import os
import subprocess
import time
from pathlib import Path

import pytest

from cima_runc.measure import layer
from cima_runc.measure.idmap import IDENTITY
from cima_runc.measure.metacopy import LowerData, LowerDataError
from cima_runc.measure.mtree import parse_manifest
from cima_runc.measure.overlay import OVERLAY, LayerDirectory, RootFilesystem
from cima_runc.measure.rootfs import Store, measure

DATA = b"hello-world\n"


def may_set_trusted(path: Path) -> bool:
    try:
        os.setxattr(path, "trusted.overlay.metacopy", b"")
    except OSError:
        return False
    os.removexattr(path, "trusted.overlay.metacopy")
    return True


@pytest.fixture(name="layers")
def _layers(tmp_path: Path) -> list[Path]:
    """A bottom layer with data, and two above it."""
    found = [tmp_path / name for name in ("bottom", "middle", "top")]
    for one in found:
        (one / "d").mkdir(parents=True)
    if not may_set_trusted(found[0]):
        pytest.skip("takes root and a filesystem with trusted attributes")
    (found[0] / "d/f").write_bytes(DATA)
    return found


def hollow(path: Path, redirect: bytes | None = None, size: int = len(DATA)) -> None:
    """A copy without data, as overlayfs makes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    os.truncate(path, size)
    os.setxattr(path, "trusted.overlay.metacopy", b"")
    if redirect is not None:
        os.setxattr(path, "trusted.overlay.redirect", redirect)


def digests(layers: list[Path]) -> dict[bytes, bytes | None]:
    """What the topmost layer's manifest says."""
    written: list[bytes] = []
    below = list(reversed(layers[:-1]))
    with layer.open_layer(layers[-1]) as root:
        found = layer.scan(root, OVERLAY, IDENTITY, written.append, below=below)
    assert found.borrows
    entries = parse_manifest(b"".join(written))
    assert not any("overlay" in name for entry in entries for name, _ in entry.xattrs)
    return {entry.path: entry.sha256 for entry in entries}


EXPECTED = hashlib.sha256(DATA).digest()


def test_data_is_that_of_the_first_layer_below_that_has_some(layers: list[Path]) -> None:
    hollow(layers[2] / "d/f")
    assert digests(layers)[b"d/f"] == EXPECTED
    hollow(layers[1] / "d/f")
    assert digests(layers)[b"d/f"] == EXPECTED
    os.removexattr(layers[1] / "d/f", "trusted.overlay.metacopy")
    (layers[1] / "d/f").write_bytes(b"HELLO-WORLD\n")
    assert digests(layers)[b"d/f"] == hashlib.sha256(b"HELLO-WORLD\n").digest()


@pytest.mark.parametrize("redirect", [b"/d/f", b"f"])
def test_renamed_files(layers: list[Path], redirect: bytes) -> None:
    hollow(layers[2] / "d/renamed", redirect)
    assert digests(layers)[b"d/renamed"] == EXPECTED


def test_renamed_directories(layers: list[Path]) -> None:
    hollow(layers[2] / "moved/f")
    os.setxattr(layers[2] / "moved", "trusted.overlay.redirect", b"/d")
    written: list[bytes] = []
    with layer.open_layer(layers[2]) as root:
        layer.scan(root, OVERLAY, IDENTITY, written.append, below=[layers[1], layers[0]])
    found = {entry.path: entry for entry in parse_manifest(b"".join(written))}
    assert found[b"moved/f"].sha256 == EXPECTED


def test_data_only_layers(layers: list[Path], tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "ab").mkdir(parents=True)
    (data / "ab/cdef").write_bytes(DATA)
    hollow(layers[2] / "d/x", b"/ab/cdef")
    assert digests([data, *layers[1:]])[b"d/x"] == EXPECTED


@pytest.mark.parametrize(
    ("redirect", "size", "words"),
    [
        (b"/nowhere", 12, "not found"),
        (None, 13, "another size"),
        (b"/../../etc/passwd", 12, "redirect"),
        (b"/link/f", 12, "not found"),
        (b"/d", 12, "not found"),
    ],
)
def test_what_cannot_be_known_is_never_guessed(
    layers: list[Path], redirect: bytes | None, size: int, words: str
) -> None:
    (layers[0] / "link").symlink_to("d")
    hollow(layers[2] / "d/f", redirect, size)
    with pytest.raises(layer.LayerError, match=f"d/f: its .*{words}"):
        digests(layers)


def test_without_layers_below(layers: list[Path]) -> None:
    hollow(layers[2] / "d/f")
    with (
        pytest.raises(layer.LayerError, match="was not found"),
        layer.open_layer(layers[2]) as root,
    ):
        layer.scan(root, OVERLAY, IDENTITY)
    with pytest.raises(LowerDataError), layer.open_layer(layers[2]) as root:
        LowerData(root, (), "trusted.overlay.").open(b"./d/f", 12)


def test_a_change_below_is_seen(layers: list[Path], tmp_path: Path) -> None:
    """The layer's own tree does not say whether its files are as they were."""
    hollow(layers[2] / "d/f")
    directories = tuple(LayerDirectory(one, "lower", OVERLAY) for one in layers)
    rootfs = RootFilesystem("overlay", tmp_path, directories)
    store = Store.at(tmp_path / "store")
    first = measure(rootfs, store)
    assert [one.is_cached for one in measure(rootfs, store).layers] == [True, True, False]
    (layers[0] / "d/f").write_bytes(b"HELLO-WORLD\n")
    second = measure(rootfs, store)
    assert first.layers[2].digest != second.layers[2].digest


def test_as_the_kernel_makes_it(tmp_path: Path) -> None:
    """chown(2) under `metacopy=on`: the measured layer is the image's, with the new owner."""
    mounted = tmp_path / "t"
    mounted.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "t", mounted], check=False).returncode:
        pytest.skip("takes root")
    try:
        lower, upper, work, merged = (mounted / name for name in "luwm")
        for one in (lower, upper, work, merged):
            one.mkdir()
        (lower / "f").write_bytes(DATA)
        options = f"lowerdir={lower},upperdir={upper},workdir={work},metacopy=on"
        command = ["mount", "-t", "overlay", "o", "-o", options, merged]
        if subprocess.run(command, check=False).returncode:
            pytest.skip("no overlay in overlay here")
        os.chown(merged / "f", 7, 7)
        subprocess.run(["umount", merged], check=True)
        if "trusted.overlay.metacopy" not in os.listxattr(upper / "f"):
            pytest.skip("this kernel copies the data up")
        written: list[bytes] = []
        with layer.open_layer(upper) as root:
            layer.scan(root, OVERLAY, IDENTITY, written.append, below=[lower])
        found = {entry.path: entry for entry in parse_manifest(b"".join(written))}[b"f"]
        assert (found.sha256, found.uid, found.size, found.xattrs) == (EXPECTED, 7, 12, ())
    finally:
        subprocess.run(["umount", mounted], check=True)


def test_hard_links_are_read_once(tmp_path: Path) -> None:
    content = os.urandom(2 << 20)
    (tmp_path / "0").write_bytes(content)
    for number in range(1, 400):
        (tmp_path / str(number)).hardlink_to(tmp_path / "0")
    (tmp_path / "other").write_bytes(content)
    written: list[bytes] = []
    began = time.process_time()
    with layer.open_layer(tmp_path) as root:
        found = layer.scan(root, OVERLAY, IDENTITY, written.append)
    spent = time.process_time() - began
    entries = [one for one in parse_manifest(b"".join(written)) if one.type == "file"]
    assert len(entries) == found.files == 401
    assert {entry.sha256 for entry in entries} == {hashlib.sha256(content).digest()}
    began = time.process_time()
    for _ in range(100):
        hashlib.sha256(content).digest()
    assert spent < time.process_time() - began  # 100 of 400
