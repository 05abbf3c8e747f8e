import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import rfc8785

from cima_runc.measure import rootfs as rootfs_module
from cima_runc.measure.idmap import parse_id_maps
from cima_runc.measure.layer import LayerError, LayerScan
from cima_runc.measure.mtree import digest, parse_manifest
from cima_runc.measure.overlay import OVERLAY, TREE, LayerDirectory, RootFilesystem
from cima_runc.measure.rootfs import DeadlineError, RootfsMeasurement, Store, deadline, measure
from cima_runc.measure.single_flight import SingleFlight


@pytest.fixture(name="rootfs")
def _rootfs(tmp_path: Path) -> RootFilesystem:
    layers = []
    for name, role in (("0", "lower"), ("1", "lower"), ("2", "upper")):
        (tmp_path / name / "d").mkdir(parents=True)
        (tmp_path / name / "d" / f"file-{name}").write_bytes(b"x" * int(name))
        layers.append(LayerDirectory(tmp_path / name, role, OVERLAY))
    (tmp_path / "merged").mkdir(mode=0o755)
    return RootFilesystem("overlay", tmp_path / "merged", tuple(layers))


@pytest.fixture(name="store")
def _store(tmp_path: Path) -> Store:
    return Store.at(tmp_path / "store")


@pytest.fixture(name="settled")
def _settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if every tree had been left alone for long."""
    monkeypatch.setattr(rootfs_module, "_quiet_since", lambda _newest: 1 << 62)


def cached(found: RootfsMeasurement) -> list[bool]:
    return [layer.is_cached for layer in found.layers]


def test_layers_are_measured_bottom_to_top(rootfs: RootFilesystem, store: Store) -> None:
    found = measure(rootfs, store)
    assert [(layer.kind, layer.files, layer.bytes, layer.entries) for layer in found.layers] == [
        ("lower", 1, 0, 2),
        ("lower", 1, 1, 2),
        ("upper", 1, 2, 2),
    ]
    for number, layer in enumerate(found.layers):
        with store.manifests.open(layer.digest) as manifest:
            data = manifest.read()
        assert digest(data) == layer.digest
        assert parse_manifest(data)[2].path == b"d/file-%d" % number
    assert found.root is not None
    assert (found.root.mode, found.root.uid) == ("0755", os.geteuid())


def test_content_of_the_record(rootfs: RootFilesystem, store: Store) -> None:
    found = measure(rootfs, store)
    content = found.content()
    assert rfc8785.dumps(content) == rfc8785.dumps(measure(rootfs, store).content())
    assert content["type"] == "rootfs"
    assert content["format"] == "cima-layer-1"
    assert content["layers"][1] == {
        "kind": "lower",
        "digest": found.layers[1].digest,
        "entries": 2,
        "files": 1,
        "bytes": 1,
        "changed": [],
        "changed_count": 0,
    }
    assert (
        RootfsMeasurement.model_validate({k: v for k, v in content.items() if k != "type"}) == found
    )


def test_off_says_so(rootfs: RootFilesystem, store: Store) -> None:
    found = measure(rootfs, store, mode="off")
    assert found.layers == ()
    assert found.content()["mode"] == "off"


def test_digests_only_keeps_no_manifests(
    rootfs: RootFilesystem, store: Store, settled: None, tmp_path: Path
) -> None:
    first = measure(rootfs, store, mode="layers-digest-only")
    assert not list((tmp_path / "store/manifests").iterdir())
    again = measure(rootfs, store, mode="layers-digest-only")
    # The upper layer's manifest is part of the record, and it is not kept: it is made anew.
    assert cached(again) == [True, True, False]
    full = measure(rootfs, store)  # what is cached has no manifest yet
    assert cached(full) == [False] * 3
    assert [layer.digest for layer in full.layers] == [layer.digest for layer in first.layers]


def test_an_unchanged_tree_is_not_read_again(
    rootfs: RootFilesystem, store: Store, settled: None
) -> None:
    first = measure(rootfs, store)
    again = measure(rootfs, store)
    assert cached(first) == [False] * 3
    assert cached(again) == [True] * 3
    assert again.content() == first.content()
    assert cached(measure(rootfs, store, use_cache=False)) == [False] * 3


@pytest.mark.parametrize("use_cache", [True, False])
def test_a_changed_file_is_seen(
    rootfs: RootFilesystem, store: Store, settled: None, tmp_path: Path, use_cache: bool
) -> None:
    """Same size, and its time put back: the kernel's ctime still tells."""
    target = tmp_path / "1/d/file-1"
    first = measure(rootfs, store, use_cache=use_cache)
    before = target.stat()
    time.sleep(0.02)
    target.write_bytes(b"!")
    os.utime(target, ns=(before.st_atime_ns, before.st_mtime_ns))
    again = measure(rootfs, store, use_cache=use_cache)
    assert [a.digest == b.digest for a, b in zip(first.layers, again.layers, strict=True)] == [
        True,
        False,
        True,
    ]
    assert cached(again) == [use_cache, False, use_cache]


def test_a_tree_that_just_changed_is_remembered_once_the_clock_has_moved(
    rootfs: RootFilesystem, store: Store
) -> None:
    """A change within one tick of the clock would not show in its times: it is waited for."""
    for _ in range(20):
        for layer in rootfs.layers:
            (layer.path / "new").write_text("old")
        first = measure(rootfs, store)
        again = measure(rootfs, store)
        assert cached(again) == [True] * 3
        for layer in rootfs.layers:
            file = layer.path / "new"
            before = file.stat()
            file.write_text("now")
            os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        changed = measure(rootfs, store)
        assert cached(changed) == [False] * 3
        assert all(one != other for one, other in zip(first.layers, changed.layers, strict=True))


def test_times_that_are_rounded_settle_later() -> None:
    now = time.time_ns()
    rounded = now // 10**9 * 10**9
    assert not rounded < rootfs_module._quiet_since(rounded)
    assert rounded - 3 * 10**9 < rootfs_module._quiet_since(rounded - 3 * 10**9)
    assert now // 1000 * 1000 + 1 < rootfs_module._quiet_since(now // 1000 * 1000 + 1)
    future = now + 10**12 + 1
    assert not future < rootfs_module._quiet_since(future)


def test_a_damaged_cache_is_measured_anew(
    rootfs: RootFilesystem, store: Store, settled: None, tmp_path: Path
) -> None:
    first = measure(rootfs, store)
    for entry in (tmp_path / "store/layers").iterdir():
        entry.write_bytes(entry.read_bytes().replace(b'"files": 1', b'"files": 7'))
    again = measure(rootfs, store)
    assert cached(again) == [False] * 3
    assert again == first
    assert cached(measure(rootfs, store)) == [True] * 3


def test_a_damaged_manifest_is_made_anew(
    rootfs: RootFilesystem, store: Store, settled: None, tmp_path: Path
) -> None:
    first = measure(rootfs, store)
    for path in (tmp_path / "store/manifests").iterdir():
        path.unlink()
    assert cached(measure(rootfs, store)) == [False] * 3
    assert all(store.manifests.has(layer.digest) for layer in first.layers)


def test_one_directory_read_in_two_ways(store: Store, settled: None, tmp_path: Path) -> None:
    """What is cached for a layer is not used for the same directory as a tree, or shifted."""
    (tmp_path / "x").mkdir()

    def one(form: object, ids: str = "") -> bool:
        directory = LayerDirectory(tmp_path / "x", "tree", form)  # type: ignore[arg-type]
        line = ids.encode()
        rootfs = RootFilesystem("tree", tmp_path, (directory,))
        return measure(rootfs, store, ids=parse_id_maps(line, line)).layers[0].is_cached

    shift = f"0 {os.geteuid()} 10\n" if os.geteuid() else "5 0 10\n"
    assert [one(TREE), one(TREE), one(OVERLAY), one(TREE, shift), one(TREE, shift)] == [
        False,
        True,
        False,
        False,
        True,
    ]


def test_a_changed_file_is_reported_and_not_cached(
    rootfs: RootFilesystem, store: Store, settled: None, tmp_path: Path
) -> None:
    def check() -> None:
        time.sleep(0.01)
        os.utime(tmp_path / "0/d")

    found = measure(rootfs, store, check=check)
    assert found.layers[0].changed == (".",)  # seen in the tree's fingerprint
    assert found.changed_count == 1
    assert not measure(rootfs, store).layers[0].is_cached


def test_deadline(rootfs: RootFilesystem, store: Store, tmp_path: Path) -> None:
    with pytest.raises(DeadlineError, match="longer than 0 s"):
        measure(rootfs, store, check=deadline(0))
    assert not list((tmp_path / "store/manifests").iterdir())
    measure(rootfs, store, check=deadline(60))


def test_without_a_store(rootfs: RootFilesystem) -> None:
    assert len(measure(rootfs).layers) == 3


def test_a_lost_layer_is_an_error(rootfs: RootFilesystem, store: Store, tmp_path: Path) -> None:
    (tmp_path / "1").rename(tmp_path / "moved")
    with pytest.raises(LayerError):
        measure(rootfs, store)


def test_a_root_that_is_not_visible_here(tmp_path: Path) -> None:
    layer = LayerDirectory(tmp_path, "tree", TREE)
    found = measure(RootFilesystem("tree", tmp_path / "nowhere", (layer,)))
    assert found.root is None
    assert len(found.layers) == 1


def test_fifty_at_once_are_measured_twice(
    rootfs: RootFilesystem, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    scans: list[str] = []
    has_begun, go_on = threading.Event(), threading.Event()
    scan = rootfs_module.scan

    def slow_scan(*args: Any, **named: Any) -> LayerScan:
        scans.append("")
        has_begun.set()
        assert go_on.wait(10)
        return scan(*args, **named)

    waiting = threading.Semaphore(0)
    wait_for = SingleFlight._wait_for

    def wait_and_tell(*args: Any) -> None:
        waiting.release()
        wait_for(*args)

    monkeypatch.setattr(rootfs_module, "scan", slow_scan)
    monkeypatch.setattr(SingleFlight, "_wait_for", wait_and_tell)

    def measured(_number: int) -> RootfsMeasurement:
        with store.work.turn():
            return measure(rootfs, store, use_cache=False)

    with ThreadPoolExecutor(50) as pool:
        first = pool.submit(measured, 0)
        assert has_begun.wait(10)
        # What is changed now must be in what is asked for from now on.
        (rootfs.layers[0].path / "d/later").write_bytes(b"")
        others = [pool.submit(measured, number) for number in range(49)]
        for _ in others:
            assert waiting.acquire(timeout=10)
        go_on.set()
        found = {other.result(10).layers[0].entries for other in others}
    assert first.result().layers[0].kind == "lower"
    assert found == {3}
    assert len(scans) < 10 * len(rootfs.layers)
