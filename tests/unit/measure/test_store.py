import hashlib
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from cima_runc.measure.store import CachedLayer, LayerCache, ManifestStore, StoreError

DATA = b"#mtree cima-layer-1\n. type=dir\n"
DIGEST = "sha256:" + hashlib.sha256(DATA).hexdigest()


def keep(store: ManifestStore, data: bytes = DATA) -> str:
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    with store.new() as manifest:
        manifest.write(data)
        manifest.keep(digest)
    return digest


def test_a_manifest_is_kept_once_under_its_digest(tmp_path: Path) -> None:
    store = ManifestStore(tmp_path / "m")
    assert keep(store) == keep(store) == DIGEST
    with store.open(DIGEST) as manifest:
        assert manifest.read() == DATA
    assert [path.name for path in (tmp_path / "m").iterdir()] == [DIGEST[7:] + ".mtree"]
    assert (tmp_path / "m" / (DIGEST[7:] + ".mtree")).stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "m").stat().st_mode & 0o777 == 0o700
    assert store.has(DIGEST)


def test_what_is_not_kept_vanishes(tmp_path: Path) -> None:
    store = ManifestStore(tmp_path / "m")
    with pytest.raises(ZeroDivisionError), store.new() as manifest:
        manifest.write(DATA)
        raise ZeroDivisionError
    assert not list((tmp_path / "m").iterdir())
    assert not store.has(DIGEST)


def test_a_changed_manifest_is_not_there(tmp_path: Path) -> None:
    store = ManifestStore(tmp_path / "m")
    keep(store)
    (tmp_path / "m" / (DIGEST[7:] + ".mtree")).write_bytes(DATA + b"x")
    assert not store.has(DIGEST)


@pytest.mark.parametrize(
    "digest", ["", "sha256:", "sha256:../../etc/passwd", DIGEST + "\n", DIGEST.upper(), DIGEST[:-1]]
)
def test_no_path_comes_from_a_digest(tmp_path: Path, digest: str) -> None:
    store = ManifestStore(tmp_path / "m")
    with pytest.raises(StoreError, match="not a digest"):
        store.open(digest)
    assert not store.has(digest)


def test_manifests_used_the_longest_ago_go_first(tmp_path: Path) -> None:
    store = ManifestStore(tmp_path / "m")
    digests = [keep(store, b"%d" % number * 100) for number in range(4)]
    for number, digest in enumerate(digests):
        path = tmp_path / f"m/{digest[7:]}.mtree"
        os.utime(path, (1000 + number, 1000 + number))
    assert store.has(digests[0])  # used now
    for name, age in ((".old.tmp", 90_000), (".new.tmp", 0)):
        (tmp_path / "m" / name).touch()
        os.utime(tmp_path / "m" / name, (time.time() - age,) * 2)
    assert store.prune(250) == 3
    assert [store.has(digest) for digest in digests] == [True, False, False, True]
    assert (tmp_path / "m/.new.tmp").exists()
    assert store.prune(250) == 0


@pytest.mark.parametrize("mode", [0o755, 0o750, 0o701, 0o770])
def test_a_directory_that_others_can_enter(tmp_path: Path, mode: int) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m").chmod(mode)
    with pytest.raises(StoreError, match="0700"):
        ManifestStore(tmp_path / "m")
    with pytest.raises(StoreError, match="0700"):
        LayerCache(tmp_path / "m")


def test_a_directory_behind_a_symbolic_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "m").symlink_to("real")
    with pytest.raises(StoreError, match="0700"):
        ManifestStore(tmp_path / "m")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a directory away")
def test_a_directory_of_somebody_else(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir(mode=0o700)
    os.chown(tmp_path / "m", 1000, 1000)
    with pytest.raises(StoreError, match="uid 0"):
        ManifestStore(tmp_path / "m")


LAYER = CachedLayer("/", "f" * 64, DIGEST, entries=1, files=2, bytes=3)


def test_cache(tmp_path: Path) -> None:
    cache = LayerCache(tmp_path / "c")
    assert cache.get("key", LAYER.fingerprint) is None
    cache.put("key", LAYER)
    assert cache.get("key", LAYER.fingerprint) == LAYER
    assert cache.get("key", "0" * 64) is None
    assert cache.get("other", LAYER.fingerprint) is None
    cache.put("key", replace(LAYER, fingerprint="0" * 64))
    assert cache.get("key", LAYER.fingerprint) is None
    assert len(list((tmp_path / "c").iterdir())) == 1


def test_every_damaged_byte_is_seen(tmp_path: Path) -> None:
    cache = LayerCache(tmp_path / "c")
    cache.put("key", LAYER)
    (file,) = (tmp_path / "c").iterdir()
    good = file.read_bytes()
    for at in range(len(good)):
        file.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        assert cache.get("key", LAYER.fingerprint) is None
        file.write_bytes(good[:at])
        assert cache.get("key", LAYER.fingerprint) is None
    file.write_bytes(good)
    assert cache.get("key", LAYER.fingerprint) == LAYER


def test_an_entry_of_another_version_is_not_used(tmp_path: Path) -> None:
    cache = LayerCache(tmp_path / "c")
    cache.put("key", LAYER)
    (file,) = (tmp_path / "c").iterdir()
    body = file.read_bytes().partition(b"\n")[0].replace(b"cima-cache-1", b"cima-cache-0")
    file.write_bytes(body + b"\n" + hashlib.sha256(body).hexdigest().encode() + b"\n")
    assert cache.get("key", LAYER.fingerprint) is None


def test_prune_cache(tmp_path: Path) -> None:
    cache = LayerCache(tmp_path / "c")
    cache.put("here", LAYER)
    cache.put("gone", replace(LAYER, path="/nowhere\\040at\\040all"))
    (tmp_path / "c/rubbish").write_bytes(b"x")
    (tmp_path / "c/.being-written.tmp").write_bytes(b"x")
    assert cache.prune() == 2
    assert (tmp_path / "c/.being-written.tmp").exists()
    assert cache.get("here", LAYER.fingerprint) == LAYER
