"""What is written to the sensor's maps, and in which order."""

import mmap
import tempfile
from collections.abc import Iterator
from typing import cast

import pytest

from cima_runc.sensor.libbpf import BPF_ANY, Libbpf
from cima_runc.sensor.pins import Handles
from cima_runc.sensor.tables import EVER_WATCHED_MAX, MAPS, Tables, Watched

FIRST_NAMESPACE = 0xF0000000
"""The kernel's lowest number (PROC_DYNAMIC_FIRST)."""


class Writes:
    """What of libbpf writes to maps; it keeps what was written, in order."""

    def __init__(self) -> None:
        self.written: list[tuple[int, int, bytes]] = []

    def map_value_size(self, fd: int) -> int:
        del fd
        return 8

    def update(self, fd: int, key: bytes, value: bytes, flags: int = BPF_ANY) -> None:
        self.written.append((fd, int.from_bytes(key, "little"), value))


@pytest.fixture(name="totals")
def _totals() -> Iterator[int]:
    with tempfile.TemporaryFile() as file:
        file.truncate(mmap.PAGESIZE)
        yield file.fileno()


@pytest.mark.parametrize("mntns", [FIRST_NAMESPACE, FIRST_NAMESPACE + 3 * EVER_WATCHED_MAX + 7])
def test_the_programs_look_for_a_namespace_before_it_is_there(mntns: int, totals: int) -> None:
    """Whatever is not in `ever_watched` is nobody's: a moment between both would be silence."""
    maps = {name: number for number, name in enumerate(MAPS, start=1000)} | {"totals": totals}
    writes = Writes()
    tables = Tables(cast("Libbpf", writes), Handles(maps, {}, {}))
    tables.put_namespace(mntns, Watched(1, 0, 0), new=True)
    tables.close()
    assert [(fd, key) for fd, key, _ in writes.written] == [
        (maps["ever_watched"], mntns % EVER_WATCHED_MAX),
        (maps["watched"], mntns),
    ]
    assert writes.written[0][2] == b"\1"
