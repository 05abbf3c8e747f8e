import json
from pathlib import Path

import pytest

from cima_runc.verifier.reference.file import (
    HostReference,
    ImageReference,
    ReferenceFileError,
    format_reference,
    parse_reference,
    read_reference,
)
from cima_runc.verifier.reference.image import read_image
from tests.support.oci import Layout, archive, member


@pytest.fixture(name="image")
def _image(tmp_path: Path) -> ImageReference:
    layout = Layout()
    layout.image(archive(member(b"\xff \n", b"x"), member("tmp/f", xattrs={"user.x": b"y"})))
    return read_image(layout.write_directory(tmp_path / "oci")).reference


HOST = HostReference(files={"/usr/bin/x": ("0" * 64, "1" * 64)})


def test_round_trip(image: ImageReference, tmp_path: Path) -> None:
    for reference in (image, HOST):
        data = format_reference(reference)
        assert data.isascii()
        assert parse_reference(data) == reference
        assert format_reference(parse_reference(data)) == data
    (tmp_path / "ref.json").write_bytes(format_reference(image))
    assert read_reference(tmp_path / "ref.json") == image


def test_stable_order(image: ImageReference) -> None:
    values = json.loads(format_reference(image))
    shuffled = image.model_copy(update={"files": dict(reversed(image.files.items()))})
    assert format_reference(shuffled) == format_reference(image)
    assert list(values) == [*sorted(set(values) - {"files"}), "files"]
    assert format_reference(image).count(b'\n  "/') == 3  # a line for each path
    assert list(values["files"]) == ["/\\377\\040\\012", "/tmp", "/tmp/f"]


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"version": "1"},
        {"kind": "vm"},
        {"format": "cima-layer-2"},
        {"unknown": 1},
        {"image_id": "sha256:" + "0" * 63},
        {"image_id": "sha256:" + "0" * 64 + "\n"},
        {"files": {"relative": {}}},
        {"files": {"/a b": {"type": "dir", "mode": "0", "uid": 0, "gid": 0, "layer": 0}}},
        {"files": {"/a": {"type": "door", "mode": "0", "uid": 0, "gid": 0, "layer": 0}}},
        *(  # numbers as texts, true for 1, 1.0 for 1: one form for one content
            {"files": {"/a": {"type": "dir", "mode": "0", "uid": uid, "gid": 0, "layer": 0}}}
            for uid in ("0", True, 1.0)
        ),
        {"layers": [{}]},
    ],
)
def test_refuses(image: ImageReference, change: dict) -> None:
    values = json.loads(format_reference(image)) | change
    with pytest.raises(ReferenceFileError, match="not a file of reference values"):
        parse_reference(json.dumps(values).encode())


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b"\xff", b"[" * 10000, b'{"kind":"host"}'])
def test_refuses_what_is_nothing(data: bytes) -> None:
    with pytest.raises(ReferenceFileError):
        parse_reference(data)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ReferenceFileError, match="No such file"):
        read_reference(tmp_path / "nothing")
