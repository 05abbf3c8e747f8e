import mmap
import os
import struct
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cima_runc.sensor.ring import RingReader

PAGE = mmap.PAGESIZE
BUSY = 1 << 31
DISCARDED = 1 << 30


class Writer:
    """The kernel's side (kernel/bpf/ringbuf.c), on memory: a file in place of the map.

    The file holds the data twice, where the kernel maps it twice.
    """

    def __init__(self, size: int = PAGE) -> None:
        self.size = size
        self.fd = os.memfd_create("ring")
        os.ftruncate(self.fd, 2 * PAGE + 2 * size)
        self.memory = mmap.mmap(self.fd, 2 * PAGE + 2 * size)

    @property
    def read_to(self) -> int:
        return int.from_bytes(self.memory[:8], "little")

    @property
    def written_to(self) -> int:
        return int.from_bytes(self.memory[PAGE : PAGE + 8], "little")

    def put(self, content: bytes, flags: int = 0) -> bool:
        """Write a record; False where there is no room."""
        start = self.written_to
        whole = struct.pack("=II", len(content) | flags, 0) + content
        whole += bytes(-len(whole) % 8)
        if start + len(whole) - self.read_to > self.size - 1:
            return False
        for at, byte in enumerate(whole, start):
            for copy in (0, self.size):
                self.memory[2 * PAGE + copy + at % self.size] = byte
        self.memory[PAGE : PAGE + 8] = struct.pack("=Q", start + len(whole))
        return True

    def commit(self, start: int, length: int) -> None:
        for copy in (0, self.size):
            at = 2 * PAGE + copy + start % self.size
            self.memory[at : at + 4] = struct.pack("=I", length)


@pytest.fixture
def writer() -> Iterator[Writer]:
    made = Writer()
    yield made
    made.memory.close()
    os.close(made.fd)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.binary(max_size=900), st.sampled_from([0, 0, 0, DISCARDED])),
            st.integers(1, 20),
        ),
        max_size=60,
    )
)
def test_what_is_written_is_read_once_in_order(
    steps: list[tuple[bytes, int] | int],
) -> None:
    writer = Writer()
    ring = RingReader(writer.fd, writer.size)
    waiting: list[bytes] = []
    for step in steps:
        if isinstance(step, int):
            assert ring.read(step, ring.end) == waiting[:step]
            ring.release()
            del waiting[:step]
        elif writer.put(*step) and not step[1]:
            waiting.append(step[0])
    assert ring.read(1000, ring.end) == waiting
    assert ring.read(1000, ring.end) == []
    ring.release()
    assert writer.read_to == writer.written_to
    ring.close()
    writer.memory.close()
    os.close(writer.fd)


def test_reading_stops_at_a_record_that_is_being_written(writer: Writer) -> None:
    ring = RingReader(writer.fd, writer.size)
    writer.put(b"first")
    start = writer.written_to
    writer.put(b"second", BUSY)
    writer.put(b"third")
    assert ring.read(10, ring.end) == [b"first"]
    assert ring.read(10, ring.end) == []
    writer.commit(start, 6)
    assert ring.read(10, ring.end) == [b"second", b"third"]
    ring.close()


def test_reading_waits_a_moment_for_a_record_that_is_being_written(writer: Writer) -> None:
    ring = RingReader(writer.fd, writer.size)
    writer.put(b"first", BUSY)
    writer.put(b"second")
    thread = threading.Timer(0.0005, writer.commit, (0, 5))
    thread.start()
    got = [record for _ in range(50) for record in ring.read(10, ring.end)]
    thread.join()
    assert got == [b"first", b"second"]
    ring.close()


def test_a_reader_starts_after_what_the_last_one_released(writer: Writer) -> None:
    for content in (b"one", b"two", b"three"):
        writer.put(content)
    first = RingReader(writer.fd, writer.size)
    assert first.read(1, first.end) == [b"one"]
    first.release()
    assert first.read(1, first.end) == [b"two"]
    assert not first.empty
    first.close()
    second = RingReader(writer.fd, writer.size)
    assert second.read(10, second.end) == [b"two", b"three"]
    assert second.empty
    second.close()


def test_what_is_not_released_keeps_its_room(writer: Writer) -> None:
    ring = RingReader(writer.fd, writer.size)
    while writer.put(b"x" * 500):
        pass
    assert len(ring.read(100, ring.end)) == 7
    assert not writer.put(b"x" * 500)
    ring.release()
    assert writer.put(b"x" * 500)
    ring.close()


def test_reading_ends_where_it_is_told_to(writer: Writer) -> None:
    ring = RingReader(writer.fd, writer.size)
    writer.put(b"before")
    end = ring.end
    writer.put(b"after")
    assert ring.read(10, end) == [b"before"]
    assert ring.read(10, end) == []
    assert ring.read(10, ring.end) == [b"after"]
    ring.close()
