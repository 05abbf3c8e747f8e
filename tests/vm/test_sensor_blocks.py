"""Blocks of files that are handed on or exchanged, below what is cached of them.

Needs root, the BPF LSM and xfs; digests need IMA.
"""

import errno
import fcntl
import mmap
import os
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from cima_runc.sensor.events import Kind, Why
from cima_runc.sensor.loader import Sensor
from tests.vm.test_sensor import Watched, install, map_executable, uses

FICLONE, XFS_IOC_SWAPEXT, XFS_IOC_EXCHANGE_RANGE = 0x40049409, 0xC0C0586D, 0x40285881
BLOCK = 4096
CODE = b"C" * (2 * BLOCK + 1000)


@pytest.fixture(scope="module")
def xfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    under = tmp_path_factory.mktemp("xfs")
    disk, mounted = under / "disk", under / "mounted"
    with disk.open("wb") as file:
        file.truncate(400 << 20)
    mounted.mkdir()
    subprocess.run(["modprobe", "-a", "loop", "xfs"], check=True)
    subprocess.run(["mkfs.xfs", "-q", disk], check=True)
    subprocess.run(["mount", "-o", "loop", disk, mounted], check=True)
    yield mounted
    subprocess.run(["umount", "-l", mounted], check=True)


@pytest.fixture
def inside(xfs: Path, sensor: Sensor) -> Iterator[Watched]:
    """A container that has the file system, with one file that it can write unseen."""
    install(xfs / "honest", CODE)
    install(xfs / "mapped", CODE)
    container = Watched(sensor)
    container.call(lambda: map_writable(xfs / "mapped"))
    yield container
    container.close()
    for file in xfs.iterdir():
        file.unlink()


def map_writable(file: Path) -> None:
    with file.open("r+b") as opened, mmap.mmap(opened.fileno(), 0):
        pass


def clone(origin: Path, copy: Path) -> None:
    with origin.open("rb") as given, copy.open("wb") as taken:
        fcntl.ioctl(taken, FICLONE, given.fileno())


@pytest.mark.parametrize("who", ["the container", "the host"])
def test_a_copy_has_what_is_on_the_disk_behind_the_end(
    xfs: Path, inside: Watched, who: str
) -> None:
    def copies() -> None:
        clone(xfs / "mapped", xfs / "copy")
        clone(xfs / "copy", xfs / "its copy")
        clone(xfs / "honest", xfs / "honest copy")

    if who == "the host":
        copies()
    else:
        inside.call(copies)
    for name in ("copy", "its copy", "honest copy"):
        inside.call(partial(map_executable, xfs / name))
    found = {
        Path(os.fsdecode(event.path or b"")).name: event.why for event in uses(inside.events())
    }
    assert found == {
        "copy": Why.WAS_MAPPED,
        "its copy": Why.WAS_MAPPED,
        "honest copy": Why.STABLE,
    }


def guarded(container: Watched) -> set[tuple[bytes | None, Why]]:
    return {(event.path, event.why) for event in container.events() if event.kind is Kind.GUARD}


@pytest.mark.parametrize("call", [XFS_IOC_SWAPEXT, XFS_IOC_EXCHANGE_RANGE])
def test_no_container_exchanges_blocks(xfs: Path, inside: Watched, call: int) -> None:
    """Nobody's is asked with what means nothing: the kernel says so, or that it knows no such."""

    def asks(file: Path) -> int:
        with file.open("r+b") as opened:
            try:
                fcntl.ioctl(opened, call, bytes(192))
            except OSError as error:
                return error.errno or 0
        return 0

    def refused() -> None:
        assert asks(xfs / "honest") == errno.EPERM

    inside.call(refused)
    assert guarded(inside) == {(b"honest", Why.RAW_DEVICE)}
    assert asks(xfs / "honest") in (errno.EINVAL, errno.EBADF, errno.ENOTTY, errno.EXDEV)
