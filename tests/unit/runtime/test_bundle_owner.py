"""A bundle that was given to the container's root, on real directories."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cima_runc.runtime.bundle_guard import foreign_part
from cima_runc.runtime.bundle_owner import take_back

MAPPED = 100000
GROUP = 200000

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="takes root")


def configuration(**change: Any) -> dict[str, Any]:
    return {
        "linux": {
            "namespaces": [{"type": "mount"}, {"type": "user"}],
            "uidMappings": [
                {"containerID": 5, "hostID": 7, "size": 1},
                {"containerID": 0, "hostID": MAPPED, "size": 5},
            ],
            "gidMappings": [{"containerID": 0, "hostID": GROUP, "size": 65536}],
            **change,
        }
    }


def write(bundle: Path, config: object) -> None:
    (bundle / "config.json").write_text(json.dumps(config))


@pytest.fixture
def bundle() -> Iterator[Path]:
    """As Podman 4 makes it with --uidmap."""
    base = Path(tempfile.mkdtemp(dir="/tmp"))
    base.chmod(0o711)
    path = base / "ID/userdata"
    path.mkdir(parents=True)
    write(path, configuration())
    os.chown(path, MAPPED, MAPPED)
    path.chmod(0o700)
    yield path
    shutil.rmtree(base)


def of(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_uid, status.st_gid, status.st_mode & 0o7777


def test_the_containers_root_keeps_reading_and_no_longer_writes(bundle: Path) -> None:
    config = f"{bundle}/config.json"
    assert foreign_part(config, 0) is not None
    assert take_back(config, 0)
    assert foreign_part(config, 0) is None
    assert of(bundle) == (0, GROUP, 0o750)
    assert not take_back(config, 0), "it is the caller's now"


@pytest.mark.parametrize(
    ("mode", "after"), [(0o777, 0o755), (0o711, 0o751), (0o1770, 0o1750), (0o770, 0o750)]
)
def test_modes(bundle: Path, mode: int, after: int) -> None:
    bundle.chmod(mode)
    assert take_back(f"{bundle}/config.json", 0)
    assert of(bundle) == (0, GROUP, after)


MAPS = configuration()["linux"]["uidMappings"]


@pytest.mark.parametrize(
    "config",
    [
        {},
        [],
        {"linux": None},
        configuration(namespaces=[{"type": "mount"}]),
        configuration(namespaces=None),
        configuration(namespaces=["user"]),
        configuration(uidMappings=[]),
        configuration(uidMappings=None),
        configuration(gidMappings=[]),
        configuration(uidMappings=[{"containerID": 0, "hostID": MAPPED + 1, "size": 1}]),
        configuration(uidMappings=[{"containerID": 0, "hostID": str(MAPPED), "size": 1}]),
        configuration(uidMappings=[{"containerID": 0, "hostID": float(MAPPED), "size": 1}]),
        configuration(uidMappings=[{"containerID": 1, "hostID": MAPPED, "size": 1}]),
        configuration(uidMappings=[{"containerID": 0, "hostID": 1 << 32, "size": 1}]),
    ],
    ids=str,
)
def test_a_directory_of_somebody_else_stays_what_it_is(bundle: Path, config: object) -> None:
    write(bundle, config)
    before = of(bundle)
    assert not take_back(f"{bundle}/config.json", 0)
    assert of(bundle) == before


@pytest.mark.parametrize(
    "part", ["../..", "..", "config.json", "a link", "no file", "a fifo", "for all", "of a group"]
)
def test_what_others_could_still_change_stays_what_it_is(bundle: Path, part: str) -> None:
    """Taking the directory would only hide that somebody else wrote what is in it."""
    config = bundle / "config.json"
    match part:
        case "a link":
            config.rename(bundle / "other.json")
            config.symlink_to("other.json")
        case "no file":
            config.unlink()
        case "a fifo":
            config.unlink()
            os.mkfifo(config)
        case "for all":
            config.chmod(0o666)
        case "of a group":
            os.chown(config, 0, 50)
            config.chmod(0o664)
        case _:
            os.chown(bundle / part, MAPPED, MAPPED)
    before = of(bundle)
    assert not take_back(str(config), 0)
    assert of(bundle) == before


def test_the_directory_itself_is_no_link(bundle: Path) -> None:
    other = bundle.parent / "link"
    other.symlink_to(bundle)
    assert not take_back(f"{other}/config.json", 0)
    assert of(bundle) == (MAPPED, MAPPED, 0o700)
