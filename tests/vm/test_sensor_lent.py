"""Pages of files that the kernel keeps: it may write to them when no mapping is left. Needs root
and the BPF LSM; digests need IMA."""

import ctypes
import mmap
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from cima_runc.sensor.events import Kind, Why
from cima_runc.sensor.loader import Sensor
from tests.vm.test_sensor import Watched, drain, install, libc, program, uses

IO_URING_SETUP, IO_URING_REGISTER, REGISTER_BUFFERS, REGISTER_PBUF_RING = 425, 427, 0, 22
AF_XDP, SOL_XDP, XDP_UMEM_REG = 44, 283, 4
MEMORY = Path("/dev/shm")
"""Only such files' pages, and huge ones, can be kept for writing."""


def ring() -> int:
    """A new io_uring's descriptor."""
    parameters = ctypes.create_string_buffer(120)
    made = libc.syscall(IO_URING_SETUP, 1, parameters)
    if made < 0:
        pytest.skip(f"no io_uring: {os.strerror(ctypes.get_errno())}")
    return int(made)


def lend(mapping: mmap.mmap, what: int) -> int:
    """Have a new io_uring keep the pages; returns its descriptor."""
    view = ctypes.c_char.from_buffer(mapping)
    address = ctypes.addressof(view)
    if what == REGISTER_BUFFERS:
        argument = struct.pack("=QQ", address, len(mapping))
    else:
        argument = struct.pack("=QIHH24x", address, 8, 0, 0)
    descriptor = ring()
    result = libc.syscall(IO_URING_REGISTER, descriptor, what, argument, 1)
    del view
    assert result == 0, os.strerror(ctypes.get_errno())
    return descriptor


def lend_buffers(mapping: mmap.mmap) -> int:
    return lend(mapping, REGISTER_BUFFERS)


def lend_ring(mapping: mmap.mmap) -> int:
    return lend(mapping, REGISTER_PBUF_RING)


def lend_packets(mapping: mmap.mmap) -> int:
    view = ctypes.c_char.from_buffer(mapping)
    area = struct.pack("=QQII", ctypes.addressof(view), len(mapping), 4096, 0)
    with socket.socket(AF_XDP, socket.SOCK_RAW) as made:
        made.setsockopt(SOL_XDP, XDP_UMEM_REG, area)
        del view
        return made.detach()


@pytest.mark.parametrize("lend_it", [lend_buffers, lend_ring, lend_packets])
def test_a_file_whose_pages_were_lent_is_stable_for_nobody(
    sensor: Sensor, lend_it: Callable[[mmap.mmap], int]
) -> None:
    file = MEMORY / "lent"
    install(file, program(b"A" * 4096))
    one, other = Watched(sensor), Watched(sensor)
    other.run(file)
    assert [event.why for event in drain(sensor)] == [Why.STABLE]
    with file.open("r+b") as opened, mmap.mmap(opened.fileno(), 4096) as mapping:
        kept = lend_it(mapping)
    for user in (one, other):
        user.run(file)
    assert [event.why for event in uses(drain(sensor))] == [Why.PINNED_MEMORY] * 2
    os.close(kept)
    file.unlink()
    assert sensor.lost() == {}
    one.close()
    other.close()


def test_who_runs_a_file_is_told_when_its_pages_are_lent(sensor: Sensor) -> None:
    file = MEMORY / "lent"
    install(file, program(b"B" * 4096))
    user = Watched(sensor)
    user.run(file)
    with file.open("r+b") as opened, mmap.mmap(opened.fileno(), 4096) as mapping:
        drain(sensor)
        kept = lend(mapping, REGISTER_BUFFERS)
        told = {(event.kind, event.why) for event in drain(sensor)}
    assert told == {(Kind.CHANGED, Why.PINNED_MEMORY)}
    os.close(kept)
    file.unlink()
    user.close()


def test_memory_of_no_file_may_be_lent(sensor: Sensor, tmp_path: Path) -> None:
    file = tmp_path / "program"
    install(file, program(b"C"))
    user = Watched(sensor)

    def lends() -> None:
        with mmap.mmap(-1, 1 << 22, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as mapping:
            mapping[::4096] = b"x" * len(mapping[::4096])
            os.close(lend(mapping, REGISTER_BUFFERS))

    user.call(lends)
    user.run(file)
    assert [event.why for event in drain(sensor)] == [Why.STABLE]
    user.close()
