import bz2
import gzip
import io
import json
import lzma
import os
import stat
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cima_runc.base import limits
from cima_runc.base.errors import CimaError
from cima_runc.measure.mtree import digest, parse_manifest
from cima_runc.verifier.reference.blob import BlobError
from cima_runc.verifier.reference.image import Image, ImageError, read_image
from cima_runc.verifier.reference.layer import ImageLayerError
from cima_runc.verifier.reference.tar import TarError
from tests.support.oci import (
    COMPRESS,
    Layout,
    archive,
    directory,
    docker_save,
    header,
    member,
    pad,
    sha256,
)

BASE = archive(
    directory("etc"),
    member("etc/a b", b"lower"),
    member("etc/gone", b"x"),
    directory("tmp", 0o1777),
    member("sh", b"#!", mode=0o4755, uid=1, gid=2),
    member("l", kind=b"2", link="x y"),
    member("n", kind=b"3", device=(1, 3)),
)
TOP = archive(
    directory("etc", 0o700),
    member("etc/a b", b"upper!"),
    member("etc/.wh.gone"),
    member("tmp/f"),
)
CONFIG = {
    "Entrypoint": ["/sh"],
    "Cmd": ["-c"],
    "User": "1:2",
    "WorkingDir": "/tmp",
    "Env": ["PATH=/bin", "B=", "A=1=2"],
    "Labels": {"unknown": "fields are fine"},
}


@pytest.fixture(name="layout")
def _layout() -> Layout:
    layout = Layout()
    layout.image(BASE, TOP, config=CONFIG)
    return layout


def test_reference_values(layout: Layout, tmp_path: Path) -> None:
    read = read_image(layout.write_directory(tmp_path / "oci"))
    reference = read.reference
    assert reference.name == "latest"
    assert reference.platform == "linux/amd64"
    assert reference.manifest == layout.manifests[0]["digest"]
    assert reference.image_id.removeprefix("sha256:") in str(layout.files)
    assert reference.config.model_dump(exclude_none=True) == {
        "entrypoint": ("/sh",),
        "cmd": ("-c",),
        "user": "1:2",
        "user_groups": {},
        "working_dir": "/tmp",
        "volumes": (),
        "homes": (),
        "env": ("A", "B", "PATH"),
        "env_values": {"A": "1=2", "B": "", "PATH": "/bin"},
    }
    assert [layer.diff_id for layer in reference.layers] == [sha256(BASE), sha256(TOP)]
    assert [(layer.files, layer.bytes, layer.entries) for layer in reference.layers] == [
        (3, 8, 7),
        (2, 6, 5),
    ]
    assert [digest(manifest) for manifest in read.manifests] == [
        layer.digest for layer in reference.layers
    ]
    assert reference.layers[0].other_digests == {}
    assert set(reference.layers[1].other_digests) == {"containerd"}  # /tmp is not listed in it
    assert reference.layers[1].digests > {reference.layers[1].digest}
    files = {path: file.model_dump(exclude_none=True) for path, file in reference.files.items()}
    assert files["/etc/a\\040b"] == {
        "type": "file",
        "mode": "0644",
        "uid": 0,
        "gid": 0,
        "size": 6,
        "sha256": sha256(b"upper!")[7:],
        "layer": 1,
    }
    assert files["/sh"]["mode"] == "04755"
    assert files["/l"]["link"] == "x\\040y"
    assert files["/n"]["device"] == (1, 3)
    assert "/etc/gone" not in files
    assert list(files) == ["/etc", "/etc/a\\040b", "/l", "/n", "/sh", "/tmp", "/tmp/f"]


@pytest.mark.parametrize("compression", ["", "gzip", "zstd"])
def test_every_form_gives_the_same_values(compression: str, tmp_path: Path) -> None:
    layout = Layout()
    layout.image(BASE, TOP, compression=compression)
    forms = [
        layout.write_directory(tmp_path / "oci"),
        layout.write_archive(tmp_path / "oci.tar"),
        docker_save(tmp_path / "docker.tar", BASE, TOP),
    ]
    read = [read_image(path) for path in forms]
    assert read[0] == read[1]
    assert read[0].manifests == read[2].manifests
    assert read[0].reference.files == read[2].reference.files
    assert read[2].reference.name == "example:latest"
    assert read[2].reference.manifest is None
    for path in tmp_path.iterdir():  # nothing was written
        assert path in forms


WHOLE: dict[str, Callable[[bytes], bytes]] = {
    "gzip": COMPRESS["gzip"],
    "zstd": COMPRESS["zstd"],
    "xz": lzma.compress,
    "bzip2": bz2.compress,
    # As pbzip2 and pixz write them: several streams, filled up with zeros.
    "xz in two": lambda data: lzma.compress(data[:700]) + bytes(4) + lzma.compress(data[700:]),
    "bzip2 in two": lambda data: bz2.compress(data[:700]) + bz2.compress(data[700:]),
}


@pytest.mark.parametrize("compression", WHOLE)
def test_an_archive_that_is_compressed_as_a_whole(compression: str, tmp_path: Path) -> None:
    path = docker_save(tmp_path / "docker.tar", BASE, TOP)
    expected = read_image(path)
    path.write_bytes(WHOLE[compression](path.read_bytes()))
    assert read_image(path) == expected
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (gzip.compress(b"x" * 1000)[:-9], "the gzip stream of the archive is cut off"),
        (b"\x1f\x8b" + bytes(50), "the archive cannot be decompressed"),
        (b"BZh91AY&SY", "compressed stream of the archive is cut off"),
        (lzma.compress(b"x" * 1000)[:-9], "compressed stream of the archive is cut off"),
        (b"BZh9" + bytes(50), "the archive cannot be decompressed"),
        (b"\xfd7zXZ\0" + bytes(50), "the archive cannot be decompressed"),
        (bz2.compress(b"x") + b"rubbish", "the archive cannot be decompressed"),
        (gzip.compress(bytes(1 << 20)), "become more than"),
        (bz2.compress(bytes(1 << 20)), "become more than"),
        (lzma.compress(bytes(1 << 20)), "become more than"),
    ],
    ids=[
        *("gzip cut", "gzip of nothing", "bzip2 cut", "xz cut", "bzip2 of nothing"),
        *("xz of nothing", "bzip2 and rubbish", "gzip bomb", "bzip2 bomb", "xz bomb"),
    ],
)
def test_a_damaged_archive_that_is_compressed_as_a_whole(
    data: bytes, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "IMAGE_RATIO_FROM", 1 << 19)
    (tmp_path / "x.tar.gz").write_bytes(data)
    with pytest.raises(BlobError, match=reason):
        read_image(tmp_path / "x.tar.gz")


def test_docker_save_of_25_and_later(layout: Layout, tmp_path: Path) -> None:
    """It has both an OCI layout and manifest.json."""
    expected = read_image(layout.write_directory(tmp_path / "oci"))
    layout.files["manifest.json"] = b"[]"
    assert read_image(layout.write_archive(tmp_path / "x.tar")) == expected


def test_podman_save_has_links_to_its_layers(tmp_path: Path) -> None:
    path = docker_save(tmp_path / "x.tar", BASE)
    expected = read_image(path)
    out = io.BytesIO()
    with tarfile.open(path) as old, tarfile.open(fileobj=out, mode="w") as new:
        for info in old:
            data = old.extractfile(info)
            if info.name.endswith("layer.tar"):
                link = tarfile.TarInfo(info.name)
                link.type, link.linkname = tarfile.SYMTYPE, "../real.tar"
                new.addfile(link)
                info.name = "real.tar"
            new.addfile(info, data)
    path.write_bytes(out.getvalue())
    assert read_image(path) == expected


def test_which_of_several(tmp_path: Path) -> None:
    layout = Layout()
    arm = {"os": "linux", "architecture": "arm", "variant": "v7"}
    amd = layout.image(BASE, tag="a/b:1")
    layout.image(TOP, tag="a/b:1", platform=arm)
    layout.image(TOP, tag="other")
    path = layout.write_directory(tmp_path / "oci")
    with pytest.raises(ImageError, match=r"3 images fit.*linux/amd64.*linux/arm/v7"):
        read_image(path)
    with pytest.raises(ImageError, match="2 images fit"):
        read_image(path, name="a/b:1")
    assert read_image(path, platform="linux/arm").reference.platform == "linux/arm/v7"
    assert read_image(path, platform="linux/arm/v7").reference.name == "a/b:1"
    chosen = read_image(path, platform="linux/amd64", name="b:1").reference
    assert (chosen.manifest, chosen.name) == (amd["digest"], "a/b:1")
    with pytest.raises(ImageError, match="0 images fit"):
        read_image(path, platform="linux/arm/v8")


def test_names_where_docker_and_containerd_write_two(tmp_path: Path) -> None:
    """`docker save a:latest b:latest` of 25 and later: the tag alone would choose neither."""
    layout = Layout()
    for name, layer in (("a", BASE), ("b", TOP)):
        descriptor = layout.image(layer)
        descriptor["annotations"] = {
            "io.containerd.image.name": f"docker.io/library/{name}:latest",
            "org.opencontainers.image.ref.name": "latest",
        }
    path = layout.write_directory(tmp_path / "oci")
    for name in ("a", "b"):
        found = read_image(path, name=f"{name}:latest").reference
        assert found.name == f"docker.io/library/{name}:latest"
    with pytest.raises(ImageError, match=r"2 images fit.*--name docker.io/library/a:latest"):
        read_image(path)


def test_one_image_compressed_in_two_ways(tmp_path: Path) -> None:
    """As `--add-compression` writes it: two manifests of one configuration."""
    layout = Layout()
    layout.image(BASE, TOP, compression="gzip")
    layout.image(BASE, TOP, compression="zstd")
    assert len({each["digest"] for each in layout.manifests}) == 2
    found = read_image(layout.write_directory(tmp_path / "oci"))
    assert found.reference.manifest == layout.manifests[0]["digest"]


@pytest.mark.parametrize(
    ("body", "change"),
    [
        (b"[]", {}),
        (b'{"manifests": null}', {}),
        (b'{"manifests": []}', {"size": 1}),
        (b'{"manifests": []}', {"digest": "blake3:" + "0" * 64}),
    ],
)
def test_an_index_beside_it_that_cannot_be_read(
    layout: Layout, tmp_path: Path, body: bytes, change: dict[str, Any]
) -> None:
    expected = read_image(layout.write_directory(tmp_path / "one"))
    other = layout.blob(body, "application/vnd.oci.image.index.v1+json") | change
    layout.manifests.append(other)
    found = read_image(layout.write_directory(tmp_path / "two"))
    assert (found.reference, len(found.passed_over)) == (expected.reference, 1)


@pytest.mark.parametrize(
    "entry",
    [
        None,
        7,
        {},
        {"digest": "sha256:" + "0" * 64},
        {"digest": "sha256:" + "0" * 64, "size": -1},
        {"digest": "sha256:" + "0" * 64, "size": 2, "platform": {"variant": ["v7"]}},
        {"digest": "sha256:" + "0" * 64, "size": 2, "annotations": {"a": {}}},
    ],
)
@pytest.mark.parametrize("depth", [0, 1])
def test_an_entry_of_an_index_that_is_no_descriptor_spoils_no_other(
    layout: Layout, tmp_path: Path, entry: Any, depth: int
) -> None:
    expected = read_image(layout.write_directory(tmp_path / "one"))
    layout.manifests.insert(0, entry)
    if depth:
        body = json.dumps({"manifests": layout.manifests}).encode()
        layout.manifests = [layout.blob(body, "application/vnd.oci.image.index.v1+json")]
    found = read_image(layout.write_directory(tmp_path / "two"))
    assert (found.reference.image_id, len(found.passed_over)) == (expected.reference.image_id, 1)
    assert "manifests.0" in found.passed_over[0]


def _with_nulls(value: Any, places: set[str]) -> Any:
    if isinstance(value, list):
        return [_with_nulls(each, places) for each in value]
    if not isinstance(value, dict):
        return value
    return {name: _with_nulls(inner, places) for name, inner in value.items()} | dict.fromkeys(
        places - value.keys()
    )


def test_null_is_what_is_not_there(layout: Layout, tmp_path: Path) -> None:
    """So Go reads it, in which all tools of images are written."""
    expected = read_image(layout.write_directory(tmp_path / "one")).reference
    places = {
        *("variant", "os", "architecture", "annotations", "platform", "mediaType", "type"),
        *("Entrypoint", "Cmd", "User", "WorkingDir", "Env", "config"),
    }
    (descriptor,) = layout.manifests
    manifest = json.loads(layout.files[f"blobs/sha256/{descriptor['digest'][7:]}"])
    config = json.loads(layout.files[f"blobs/sha256/{manifest['config']['digest'][7:]}"])
    data = json.dumps(_with_nulls(config, places)).encode()
    manifest["config"] = layout.blob(data, manifest["config"]["mediaType"])
    data = json.dumps(_with_nulls(manifest, places - {"config"})).encode()
    layout.manifests = [_with_nulls(layout.blob(data, manifest["mediaType"]), places)]
    layout.manifests[0]["platform"] = dict.fromkeys(("os", "architecture", "variant"))
    layout.manifests[0]["annotations"] = {"a": None, **descriptor["annotations"]}
    found = read_image(layout.write_directory(tmp_path / "two")).reference
    assert found.config == expected.config
    assert (found.platform, found.name, found.files) == (
        expected.platform,
        expected.name,
        expected.files,
    )


@pytest.mark.parametrize("form", [str.lower, str.upper, str.swapcase])
def test_names_of_fields_in_any_case(form: Callable[[str], str], tmp_path: Path) -> None:
    """So Go reads them, and Nix's dockerTools writes them as they were typed."""
    own = {
        "Entrypoint": ["/f"],
        "Cmd": ["now"],
        "User": "7",
        "WorkingDir": "/d",
        "Env": ["a=b"],
        "Volumes": {"/V": {}},
    }
    layer = archive(member("f"))
    typed = {form(name): value for name, value in own.items()}
    found, expected = (
        read_image(docker_save(tmp_path / name, layer, config=config)).reference.config
        for name, config in (("typed", typed), ("usual", own))
    )
    assert found == expected
    assert found.command == ("/f", "now")
    assert (found.user, found.volumes) == ("7", ("/V",))
    data = json.dumps({form(name): value for name, value in json.loads(_saved(own)).items()})
    manifest = json.dumps([{form("Config"): "c", form("Layers"): ["l"]}]).encode()
    parts = [member("c", data.encode()), member("l", layer), member("manifest.json", manifest)]
    (tmp_path / "all").write_bytes(archive(*parts))
    assert read_image(tmp_path / "all").reference.config == expected


def _saved(config: dict) -> str:
    rootfs = {"type": "layers", "diff_ids": [sha256(archive(member("f")))]}
    return json.dumps({"os": "linux", "config": config, "rootfs": rootfs})


def test_of_a_name_in_two_cases_the_last_counts(tmp_path: Path) -> None:
    config = {"Cmd": ["/a"], "cmd": ["/b"], "user": "1", "User": None}
    found = read_image(docker_save(tmp_path / "x", archive(member("f")), config=config)).reference
    assert (found.config.command, found.config.user) == (("/b",), "1")


def test_a_command_that_is_a_text_is_one_word(tmp_path: Path) -> None:
    """Kind: what an image says is written otherwise than usual, and Docker takes it."""
    layout = Layout()
    layout.image(archive(member("f")), config={"Entrypoint": "/bin/a b", "Cmd": "c d"})
    found = read_image(layout.write_directory(tmp_path / "x")).reference.config
    assert found.command == ("/bin/a b", "c d")
    layout = Layout()
    layout.image(archive(member("f")), config={"Cmd": {"a": "b"}})
    refused(layout.write_directory(tmp_path / "y"), "not of its form")


def test_volumes_that_an_image_wants(tmp_path: Path) -> None:
    layout = Layout()
    layout.image(archive(member("f")), config={"Volumes": {"/data": {}, "/a": None}})
    assert read_image(layout.write_directory(tmp_path / "x")).reference.config.volumes == (
        "/a",
        "/data",
    )


def test_some_gib_of_zeros_are_no_bomb(tmp_path: Path) -> None:
    """As a new database has them, or /var/log/lastlog for a user of a high number."""
    records = {"GNU.sparse.map": b"0,0", "GNU.sparse.size": str(1100 * limits.MIB).encode()}
    layout = Layout()
    layout.image(archive(member("sparse", records=records)))
    found = read_image(layout.write_directory(tmp_path / "oci")).reference
    assert found.files["/sparse"].size == 1100 * limits.MIB


@pytest.mark.parametrize(
    ("asked", "fits"),
    [
        *((name, True) for name in ("x", "a/x", "r.io/a/x", "x:latest", "r.io/a/x:latest")),
        *((name, False) for name in ("y", "io/a/x", "x:1", "/x", "x@latest", "latest:x", "")),
    ],
)
def test_a_name_without_a_tag_is_the_latest(asked: str, fits: bool, tmp_path: Path) -> None:
    layout = Layout()
    layout.image(BASE, tag="r.io/a/x:latest")
    layout.image(TOP, tag="r.io/a/x:1")
    path = layout.write_directory(tmp_path / "oci")
    if fits:
        assert read_image(path, name=asked).reference.name == "r.io/a/x:latest"
    elif asked == "x:1":
        assert read_image(path, name=asked).reference.name == "r.io/a/x:1"
    else:
        with pytest.raises(ImageError, match="0 images fit"):
            read_image(path, name=asked)


@pytest.mark.parametrize(
    ("asked", "platform"),
    [
        *(("amd64", "linux/amd64"), ("x86_64", "linux/amd64"), ("arm64", "linux/arm64")),
        *(("AArch64", "linux/arm64"), ("windows", "windows/amd64")),
    ],
)
def test_an_architecture_or_a_system_alone(asked: str, platform: str, tmp_path: Path) -> None:
    layout = Layout()
    for number, each in enumerate(("linux/amd64", "linux/arm64", "windows/amd64")):
        of = dict(zip(("os", "architecture"), each.split("/"), strict=True))
        layout.image(archive(member(f"f{number}")), platform=of)
    path = layout.write_directory(tmp_path / "oci")
    assert read_image(path, platform=asked).reference.platform == platform


def test_an_index_in_an_index_with_attestations(layout: Layout, tmp_path: Path) -> None:
    inner = layout.manifests
    attestation = layout.blob(b"{}", "application/vnd.oci.image.manifest.v1+json")
    attestation["annotations"] = {"vnd.docker.reference.type": "attestation-manifest"}
    absent = {**attestation, "digest": sha256(b"not here"), "annotations": {}}
    body = json.dumps({"manifests": [*inner, attestation, absent]}).encode()
    index = layout.blob(body, "application/vnd.oci.image.index.v1+json")
    index["annotations"] = {"io.containerd.image.name": "docker.io/library/x:1"}
    layout.manifests = [index]
    found = read_image(layout.write_directory(tmp_path / "oci"), name="x:1")
    assert found.reference.name == "docker.io/library/x:1"


def test_an_artifact_is_not_an_image(layout: Layout, tmp_path: Path) -> None:
    config = layout.blob(b"{}", "application/vnd.oci.empty.v1+json")
    body = json.dumps({"config": config, "layers": []}).encode()
    layout.manifests.append(layout.blob(body, "application/vnd.oci.image.manifest.v1+json"))
    assert len(read_image(layout.write_directory(tmp_path / "oci")).reference.layers) == 2


def test_an_image_without_layers(tmp_path: Path) -> None:
    layout = Layout()
    layout.image()
    read = read_image(layout.write_directory(tmp_path / "oci"))
    assert (read.reference.layers, read.reference.files) == ((), {})


def test_an_empty_layer(tmp_path: Path) -> None:
    layout = Layout()
    layout.image(archive())
    (manifest,) = read_image(layout.write_directory(tmp_path / "oci")).manifests
    assert len(parse_manifest(manifest)) == 1


# What is damaged or hostile: a clear error, soon, and nothing written.


def refused(path: Path, reason: str) -> None:
    before = sorted(each for each in path.parent.rglob("*"))
    start = time.process_time()
    with pytest.raises(CimaError, match=reason) as caught:
        read_image(path)
    assert time.process_time() - start < 10
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 2000
    assert sorted(each for each in path.parent.rglob("*")) == before


def test_every_changed_blob_is_seen(layout: Layout, tmp_path: Path) -> None:
    path = layout.write_directory(tmp_path / "oci")
    blobs = list((path / "blobs/sha256").iterdir())
    assert len(blobs) == 4
    for blob in blobs:
        good = blob.read_bytes()
        for changed in (good[:-1] + bytes([good[-1] ^ 1]), good + b"\0", good[:-1], b""):
            blob.write_bytes(changed)
            with pytest.raises(CimaError):
                read_image(path)
        blob.write_bytes(good)
    assert isinstance(read_image(path), Image)


def test_a_layer_that_is_not_the_configurations(layout: Layout, tmp_path: Path) -> None:
    """Every blob is as its digest says, but the archive is not what the image's id is of."""
    manifest = layout.manifests[0]
    body = json.loads(layout.files[f"blobs/sha256/{manifest['digest'][7:]}"])
    body["layers"][0] = layout.blob(TOP, "application/vnd.oci.image.layer.v1.tar")
    layout.manifests = [layout.blob(json.dumps(body).encode(), body["mediaType"])]
    refused(layout.write_directory(tmp_path / "oci"), "has the digest")


@pytest.mark.parametrize("extra", [1, -1])
def test_more_or_fewer_layers_than_diff_ids(layout: Layout, tmp_path: Path, extra: int) -> None:
    manifest = layout.manifests[0]
    body = json.loads(layout.files[f"blobs/sha256/{manifest['digest'][7:]}"])
    body["layers"] = body["layers"][:extra] if extra < 0 else [*body["layers"], body["layers"][0]]
    layout.manifests = [layout.blob(json.dumps(body).encode(), body["mediaType"])]
    refused(layout.write_directory(tmp_path / "oci"), "diff_ids")


@pytest.mark.parametrize(
    ("layers", "reason"),
    [
        ([archive(member("../../etc/cron.d/x", b"evil"))], r"\.\."),
        ([archive(member("/../etc/passwd", b"evil"))], r"\.\."),
        ([archive(member("a", kind=b"2", link="/"), member("a/../../x"))], r"\.\."),
        ([archive(member("f", kind=b"1", link="../../etc/shadow"))], r"\.\."),
        ([BASE, archive(member("f", kind=b"1", link="sh"))], "does not have"),
        ([archive(header(b"huge", size=2**50))], "more than"),
        ([header(b"cut", size=10**6) + b"x"], "ends in the middle"),
        ([b"not a tar archive at all" * 100], "no tar archive|checksum"),
        ([archive(member("x" * 5000))], "path of 5000 bytes"),
    ],
)
def test_hostile_layers(layers: list[bytes], reason: str, tmp_path: Path) -> None:
    layout = Layout()
    layout.image(*layers)
    refused(layout.write_directory(tmp_path / "oci"), reason)


def test_a_sparse_file_as_a_bomb(tmp_path: Path) -> None:
    records = {"GNU.sparse.map": b"0,0", "GNU.sparse.size": str(300 * 1024 * limits.MIB).encode()}
    layout = Layout()
    layout.image(archive(member("sparse", records=records)))
    refused(layout.write_directory(tmp_path / "oci"), "become more than")


def test_many_small_files_as_a_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LAYER_ENTRIES", 1000)
    layout = Layout()
    layout.image(archive(*(member(f"f{n}") for n in range(2000))))
    refused(layout.write_directory(tmp_path / "oci"), "more than 1000 members")


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("index.json", b"", "index.json is not of its form"),
        ("index.json", b"{", "index.json is not of its form"),
        ("index.json", b"[]", "index.json is not of its form"),
        ("index.json", b"[" * 100_000, "index.json is not of its form"),
        ("index.json", b'{"manifests":[]}', "0 images fit"),
        ("index.json", b'{"manifests":[{"digest":"sha256:../../etc/passwd","size":1}]}', "digest"),
        ("index.json", b'{"manifests":[{"digest":"","size":-1}]}', "index.json is not of its form"),
        ("index.json", b" " * (limits.IMAGE_JSON + 1), "has more than"),
    ],
)  # fmt: skip
def test_hostile_json(layout: Layout, tmp_path: Path, name: str, data: bytes, reason: str) -> None:
    path = layout.write_directory(tmp_path / "oci")
    (path / name).write_bytes(data)
    refused(path, reason)


def test_an_index_that_holds_itself_too_deeply(layout: Layout, tmp_path: Path) -> None:
    for _ in range(limits.IMAGE_INDEX_DEPTH + 1):
        body = json.dumps({"manifests": layout.manifests}).encode()
        layout.manifests = [layout.blob(body, "application/vnd.oci.image.index.v1+json")]
    refused(layout.write_directory(tmp_path / "oci"), "indexes in indexes")


@pytest.mark.parametrize(
    "media_type",
    ["application/vnd.oci.image.layer.v1.tar+gzip+encrypted", "application/vnd.cncf.helm.chart"],
)
def test_layers_of_another_kind(layout: Layout, tmp_path: Path, media_type: str) -> None:
    manifest = layout.manifests[0]
    body = json.loads(layout.files[f"blobs/sha256/{manifest['digest'][7:]}"])
    body["layers"][0]["mediaType"] = media_type
    layout.manifests = [layout.blob(json.dumps(body).encode(), body["mediaType"])]
    refused(layout.write_directory(tmp_path / "oci"), "cannot be read")


def saved(path: Path, *parts: bytes) -> Path:
    path.write_bytes(archive(*parts))
    return path


def test_hostile_saved_images(tmp_path: Path) -> None:
    config = json.dumps({"rootfs": {"diff_ids": [sha256(BASE)]}}).encode()
    name = sha256(config)[7:] + ".json"

    def manifest(config_name: str = name, layer: str = "l.tar") -> bytes:
        return member(
            "manifest.json", json.dumps([{"Config": config_name, "Layers": [layer]}]).encode()
        )

    good = member(name, config), member("l.tar", BASE)
    assert len(read_image(saved(tmp_path / "x.tar", *good, manifest())).reference.layers) == 1
    for parts, reason in (
        ((*good, manifest("../../etc/passwd")), "does not have"),
        ((*good, manifest("0" * 64 + ".json")), "does not have"),
        ((*good, manifest(layer="/etc/passwd")), "does not have"),
        ((*good, manifest(layer="../x")), "does not have"),
        ((*good, manifest(), manifest(layer="m.tar")), "twice"),
        ((good[0], member("l.tar", TOP), manifest()), "has the digest"),
        ((good[0], member("l.tar", kind=b"2", link="l.tar"), manifest()), "does not have"),
        ((good[0], member("l.tar", kind=b"2", link="/etc/passwd"), manifest()), "does not have"),
        ((good[0], header(b"l.tar", size=2**40), manifest()), "ends in the middle"),
        (good, "neither an OCI layout"),
        ((member("manifest.json", b"[1]"),), "manifest.json is not of its form"),
    ):
        refused(saved(tmp_path / "x.tar", *parts), reason)


def test_an_archive_of_too_many_members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "ARCHIVE_ENTRIES", 10)
    refused(saved(tmp_path / "x.tar", *(member(str(n)) for n in range(20))), "more than 10 members")


def test_not_an_image(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "neither an OCI layout")
    (tmp_path / "text").write_bytes(b"hello" * 1000)
    with pytest.raises(TarError):
        read_image(tmp_path / "text")
    refused(tmp_path / "nothing", "No such file")
    os.mkfifo(tmp_path / "fifo")
    refused(tmp_path / "fifo", "not a directory or a regular file")


def test_blobs_that_are_not_files(layout: Layout, tmp_path: Path) -> None:
    path = layout.write_directory(tmp_path / "oci")
    layer = path / "blobs/sha256" / sha256(b"").removeprefix("sha256:")
    layer.write_bytes(b"")
    for blob in list((path / "blobs/sha256").iterdir())[:1]:
        blob.unlink()
        os.mkfifo(blob)
    with pytest.raises((ImageError, BlobError, ImageLayerError)):
        read_image(path)
    assert any(stat.S_ISFIFO(each.stat().st_mode) for each in (path / "blobs/sha256").iterdir())


def test_an_error_shows_no_control_characters(tmp_path: Path) -> None:
    layout = Layout()
    layout.image(archive(member("../\x1b[2J\n", b"")))
    with pytest.raises(ImageLayerError) as caught:
        read_image(layout.write_directory(tmp_path / "oci"))
    assert str(caught.value).isprintable()


def test_the_outer_archive_is_not_read_into_memory(tmp_path: Path) -> None:
    """Members that nobody asks for are skipped, however large they say they are."""
    path = docker_save(tmp_path / "x.tar", BASE)
    data = path.read_bytes()[:-1024]
    with path.open("wb") as out:
        out.write(data + header(b"large", size=64 << 30))
        out.truncate(len(data) + 512 + (64 << 30) + 1024)
    start = time.process_time()
    assert len(read_image(path).reference.layers) == 1
    assert time.process_time() - start < 5
    assert pad(b"x") == b"x" + bytes(511)


CASES = Path(__file__).parents[5] / "shared/cases"


def case(name: str) -> Path:
    path = CASES / name
    if not path.exists():
        pytest.skip("no ../shared")
    return path


IMAGE_ID = "sha256:42c93b0fa9a47483509339b47bcd056b61850d1afb828f62ec78bc1adfe4cbfa"


@pytest.mark.parametrize(
    ("name", "passed_over"),
    [
        ("image-archive-of-crane/crane.tar", 0),
        ("archive-member-twice/twice.tar", 0),
        ("attestation-without-annotations/attest-bare.tar", 1),
        ("cosign-save-layout/cosign", 1),
    ],
)
def test_what_tools_have_written(name: str, passed_over: int) -> None:
    read = read_image(case(name))
    assert read.reference.image_id == IMAGE_ID
    assert len(read.passed_over) == passed_over
    assert all("cannot be read" in line for line in read.passed_over)
    assert read_image(case(name), platform="linux/amd64").reference == read.reference


@pytest.mark.parametrize(
    ("name", "asked", "variant"),
    [
        ("variant.tar", "linux/arm/v7", "arm/v7"),
        ("variant.tar", "linux/arm/v6", "arm/v6"),
        ("variant.tar", "linux/arm", "arm/v7"),
        ("variant.tar", "linux/armhf", "arm/v7"),
        ("variant.tar", "linux/arm64", "arm64/v8"),
        ("variant.tar", "linux/arm64/v8", "arm64/v8"),
        ("variant.tar", "Linux/aarch64/8", "arm64/v8"),
        ("arm64.tar", "linux/arm64/v8", "arm64"),
        ("arm64.tar", "linux/arm64", "arm64"),
        ("arm64.tar", None, "arm64"),
    ],
)
def test_variants_as_containerd_takes_them(name: str, asked: str | None, variant: str) -> None:
    found = read_image(case("variant-in-index-only") / name, platform=asked).reference
    assert found.platform == f"linux/{variant}"


@pytest.mark.parametrize("asked", ["linux/arm/v5", "linux/amd64", "windows/arm", "linux/arm64/v9"])
def test_variants_that_are_not_there(asked: str) -> None:
    with pytest.raises(ImageError, match=r"0 images fit; there are: .*--platform linux/arm/v7"):
        read_image(case("variant-in-index-only") / "variant.tar", platform=asked)


def as_saved(layout: Layout, config_name: str, layer_name: Callable[[str], str]) -> list[bytes]:
    """The archive of a tool that names its files so."""
    manifest = json.loads(layout.files[f"blobs/sha256/{layout.manifests[0]['digest'][7:]}"])
    config = layout.files[f"blobs/sha256/{manifest['config']['digest'][7:]}"]
    layers = [one["digest"][7:] for one in manifest["layers"]]
    names = [layer_name(one) for one in layers]
    blobs = [
        member(name, layout.files[f"blobs/sha256/{one}"])
        for name, one in zip(names, layers, strict=True)
    ]
    config_name = config_name.format(hex=manifest["config"]["digest"][7:])
    body = json.dumps([{"Config": config_name, "RepoTags": ["a/b:1"], "Layers": names}])
    return [member(config_name, config), *blobs, member("manifest.json", body.encode())]


TOOLS = {
    "crane, kaniko, ko": ("sha256:{hex}", lambda one: f"{one}.tar.gz"),
    "jib": ("config.json", lambda one: f"{one}.tar.gz"),
    "docker": ("{hex}.json", lambda one: f"{one}/layer.tar"),
    "another's name": ("0" * 64 + ".json", lambda one: f"layers/{one}"),
}


@pytest.mark.parametrize("tool", TOOLS)
def test_the_id_is_the_configurations_digest(tool: str, layout: Layout, tmp_path: Path) -> None:
    expected = read_image(layout.write_directory(tmp_path / "oci")).reference
    parts = as_saved(layout, *TOOLS[tool])
    found = read_image(saved(tmp_path / "x.tar", *parts)).reference
    assert (found.image_id, found.layers[0].digest) == (
        expected.image_id,
        expected.layers[0].digest,
    )
    assert found.files == expected.files
    # Unpacked, and with every member twice.
    with tarfile.open(tmp_path / "x.tar") as packed:
        packed.extractall(tmp_path / "unpacked")
    assert read_image(tmp_path / "unpacked").reference.image_id == expected.image_id
    twice = read_image(saved(tmp_path / "x.tar", *parts, *parts)).reference
    assert twice.image_id == expected.image_id
    other = member(TOOLS[tool][0].format(hex=expected.image_id[7:]), b"{}")
    refused(saved(tmp_path / "x.tar", *parts, other), "twice, with different content")


def as_directory(layout: Layout, path: Path) -> Path:
    """What skopeo's `dir:` and `podman save --format docker-dir` write."""
    path.mkdir()
    digest = layout.manifests[0]["digest"][7:]
    (path / "version").write_text("Directory Transport Version: 1.1\n")
    for name, data in layout.files.items():
        if (hexadecimal := name.rpartition("/")[2]) == digest:
            (path / "manifest.json").write_bytes(data)
        elif name.startswith("blobs/"):
            (path / hexadecimal).write_bytes(data)
    return path


def test_skopeos_directory(layout: Layout, tmp_path: Path) -> None:
    expected = read_image(layout.write_directory(tmp_path / "oci")).reference
    found = read_image(as_directory(layout, tmp_path / "dir")).reference
    assert (found.image_id, found.manifest) == (expected.image_id, expected.manifest)
    assert found.files == expected.files


def test_skopeos_directory_of_several(tmp_path: Path) -> None:
    layout = Layout()
    one, two = (
        layout.image(BASE, tag=None),
        layout.image(TOP, tag=None, platform={"os": "linux", "architecture": "arm64"}),
    )
    path = tmp_path / "dir"
    path.mkdir()
    for name, data in layout.files.items():
        hexadecimal = name.rpartition("/")[2]
        is_manifest = hexadecimal in (one["digest"][7:], two["digest"][7:])
        (path / (hexadecimal + ".manifest.json" * is_manifest)).write_bytes(data)
    (path / "manifest.json").write_text(json.dumps({"manifests": layout.manifests}))
    with pytest.raises(ImageError, match="2 images fit"):
        read_image(path)
    assert read_image(path, platform="linux/arm64").reference.manifest == two["digest"]


def test_layers_null(layout: Layout, tmp_path: Path) -> None:
    config = json.dumps({"os": "linux", "rootfs": {"type": "layers", "diff_ids": None}}).encode()
    body = json.dumps([{"Config": "c.json", "RepoTags": None, "Layers": None}]).encode()
    path = saved(tmp_path / "x.tar", member("c.json", config), member("manifest.json", body))
    assert read_image(path).reference.layers == ()


def test_what_was_asked_for_and_cannot_be_read_is_an_error(layout: Layout, tmp_path: Path) -> None:
    body = json.loads(layout.files[f"blobs/sha256/{layout.manifests[0]['digest'][7:]}"])
    body["layers"][0]["mediaType"] += "+encrypted"
    arm = {"os": "linux", "architecture": "arm64"}
    layout.manifests.append(
        layout.blob(json.dumps(body).encode(), body["mediaType"], platform=arm)
        | {"annotations": {"org.opencontainers.image.ref.name": "secret"}}
    )
    path = layout.write_directory(tmp_path / "oci")
    read = read_image(path)
    assert len(read.passed_over) == 1
    assert read.passed_over[0].startswith("secret: ")
    for chosen in ({"platform": "linux/arm64"}, {"name": "secret"}):
        with pytest.raises(ImageError, match="encrypted cannot be read"):
            read_image(path, **chosen)


def test_the_options_that_choose(tmp_path: Path) -> None:
    layout = Layout()
    layout.image(BASE, tag="a:1")
    layout.image(TOP, tag="b:1")
    path = layout.write_directory(tmp_path / "oci")
    with pytest.raises(ImageError, match="--name a:1 --platform linux/amd64") as caught:
        read_image(path)
    assert "--name b:1 --platform linux/amd64" in caught.value.what
    with pytest.raises(CimaError, match="not a platform"):
        read_image(path, platform="a/b/c/d")


def test_a_directory_is_not_left(layout: Layout, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"{}")
    path = tmp_path / "image"
    path.mkdir()
    for name in ("../secret", str(tmp_path / "secret")):
        (path / "manifest.json").write_text(json.dumps([{"Config": name, "Layers": []}]))
        refused(path, "does not have")
