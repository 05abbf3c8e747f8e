"""What is written to the sensor's maps, and in which order."""

import mmap
import tempfile
from collections.abc import Iterator
from typing import cast

import pytest

from cima_runc.sensor.libbpf import BPF_ANY, Libbpf
from cima_runc.sensor.pins import Handles
from cima_runc.sensor.tables import (
    CLASSES,
    EVER_WATCHED_MAX,
    LAYERS,
    MAPS,
    Flag,
    Row,
    Tables,
    Watched,
    class_of,
)

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


def test_a_container_counts_the_changes_of_its_class() -> None:
    assert {class_of(number) for number in range(1000)} == set(range(LAYERS))
    maps = {name: number for number, name in enumerate(MAPS, start=1000)}
    with tempfile.TemporaryFile() as file:
        counts = [5, 6, 7, *range(100, 100 + CLASSES)]
        file.write(b"".join(count.to_bytes(8, "little") for count in counts))
        file.flush()
        file.truncate(mmap.PAGESIZE)
        tables = Tables(cast("Libbpf", Writes()), Handles(maps | {"totals": file.fileno()}, {}, {}))
        row = Row(1, 0, 0, 0, 11, crowded=90, crowded_below=150)
        assert (tables.dropped, tables.full, tables.missed()) == (5, 6, 7)
        assert tables.unattributed == sum(range(100, 100 + CLASSES))
        assert tables.unattributed_to(1 << 50, row) == 0
        crowded = row._replace(flags=Flag.CROWDED)
        assert tables.unattributed_to(1 << 50, crowded) == 10 + class_of(1 << 50)
        below = row._replace(flags=Flag.CROWDED_BELOW)
        assert tables.unattributed_to(1 << 50, below) == 100 + LAYERS - 150
        both = row._replace(flags=Flag.CROWDED | Flag.CROWDED_BELOW)
        assert tables.unattributed_to(1 << 50, both) == 23 + class_of(1 << 50)
        tables.close()
