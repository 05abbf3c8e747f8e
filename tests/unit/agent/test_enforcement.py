import os
from collections.abc import Collection
from pathlib import Path
from typing import Any, cast

import pytest

from cima_runc.agent.enforcement import Enforcement, EnforcementError
from cima_runc.config import EnforcementSettings
from cima_runc.sensor.loader import Sensor
from cima_runc.verifier.reference.file import (
    HostReference,
    ImageReference,
    ReferenceConfig,
    ReferenceFile,
    ReferenceLayer,
    format_reference,
)


class Lists:
    """The sensor's part: lists, each a descriptor."""

    def __init__(self) -> None:
        self.made: dict[int, set[bytes]] = {}

    def allowlist(self, digests: Collection[bytes]) -> int:
        handle = os.open("/dev/null", os.O_RDONLY)
        self.made[handle] = set(digests)
        return handle


def image(name: str, *layers: str, files: int = 2) -> ImageReference:
    return ImageReference(
        platform="linux/amd64",
        image_id="sha256:" + name * 64,
        config=ReferenceConfig(),
        layers=tuple(
            ReferenceLayer(
                digest="sha256:" + layer * 64,
                other_digests={"podman": "sha256:" + layer.translate({97: "d"}) * 64},
                diff_id="sha256:" + layer * 64,
                entries=1,
                files=1,
                bytes=1,
            )
            for layer in layers
        ),
        files={
            f"/file{number}": ReferenceFile(
                type="file", mode="0755", uid=0, gid=0, layer=0, sha256=f"{number:064x}"
            )
            for number in range(files)
        }
        | {"/": ReferenceFile(type="dir", mode="0755", uid=0, gid=0, layer=0)},
    )


def rootfs(*layers: str) -> dict[str, Any]:
    lower = [{"kind": "lower", "digest": "sha256:" + layer * 64} for layer in layers]
    return {"layers": [*lower, {"kind": "upper", "digest": "sha256:" + "0" * 64}]}


@pytest.fixture
def lists() -> Lists:
    return Lists()


def enforcement(directory: Path, lists: Lists, **values: Any) -> Enforcement:
    settings = EnforcementSettings(references=str(directory), **({"enforce": True} | values))
    return Enforcement(settings, cast("Sensor", lists))


def digests(*numbers: int) -> set[bytes]:
    return {number.to_bytes(32, "big") for number in numbers}


def test_the_image_is_the_one_with_these_layers(tmp_path: Path, lists: Lists) -> None:
    (tmp_path / "one.json").write_bytes(format_reference(image("1", "a", "b")))
    (tmp_path / "two.json").write_bytes(format_reference(image("2", "a", files=3)))
    (tmp_path / "host.json").write_bytes(format_reference(HostReference(files={})))
    (tmp_path / "notes.txt").write_text("not read")
    made = enforcement(tmp_path, lists, allow=["f" * 64])
    for layers, name, files in ((("a", "b"), "1", 2), (("d", "b"), "1", 2), (("a",), "2", 3)):
        found = made.allowlist(rootfs(*layers))
        assert found is not None
        assert found.image == "sha256:" + name * 64
        assert lists.made[found.handle] == digests(*range(files)) | {b"\xff" * 32}
    assert len(lists.made) == 2, "containers of one image share a list"


@pytest.mark.parametrize("layers", [(), ("b", "a"), ("a", "b", "c"), ("c",)])
def test_a_container_of_another_image(tmp_path: Path, lists: Lists, layers: tuple[str]) -> None:
    (tmp_path / "one.json").write_bytes(format_reference(image("1", "a", "b")))
    with pytest.raises(EnforcementError, match="none of the images") as refused:
        enforcement(tmp_path, lists).allowlist(rootfs(*layers))
    assert "cima reference image" in refused.value.hint
    admitting = enforcement(tmp_path, lists, unknown_images="admit")
    assert admitting.allowlist(rootfs(*layers)) is None


def test_without_enforcement_nothing_is_read(tmp_path: Path, lists: Lists) -> None:
    (tmp_path / "one.json").write_text("damaged")
    assert enforcement(tmp_path, lists, enforce=False).allowlist(rootfs("a")) is None


def test_files_are_read_anew_when_they_change(tmp_path: Path, lists: Lists) -> None:
    path = tmp_path / "one.json"
    made = enforcement(tmp_path, lists)
    for name, files in (("1", 2), ("2", 3)):
        path.write_bytes(format_reference(image(name, "a", files=files)))
        found = made.allowlist(rootfs("a"))
        assert found is not None and found.image == "sha256:" + name * 64
        assert made.allowlist(rootfs("a")) == found
    path.unlink()
    with pytest.raises(EnforcementError):
        made.allowlist(rootfs("a"))


def test_what_cannot_be_read_or_is_too_long_is_refused(tmp_path: Path, lists: Lists) -> None:
    (tmp_path / "one.json").write_bytes(format_reference(image("1", "a", files=9)))
    with pytest.raises(EnforcementError, match=r"has 9 files; enforcement\.files = 9 allows"):
        enforcement(tmp_path, lists, files=8).allowlist(rootfs("a"))
    (tmp_path / "one.json").write_text("{}")
    with pytest.raises(EnforcementError, match="not a file of reference values"):
        enforcement(tmp_path, lists).allowlist(rootfs("a"))


def test_a_container_that_is_taken_over_keeps_its_list(tmp_path: Path, lists: Lists) -> None:
    path = tmp_path / "one.json"
    path.write_bytes(format_reference(image("1", "a")))
    made = enforcement(tmp_path, lists, enforce=False)
    assert lists.made[made.again("sha256:" + "1" * 64, rootfs("a")).handle] == digests(0, 1)
    path.unlink()
    assert lists.made[made.again("sha256:" + "1" * 64, rootfs("a")).handle] == set()
