"""The reader's side of a BPF ring buffer (kernel/bpf/ringbuf.c), read where it is mapped.

One page with the reader's position, one with the writer's, then the data, mapped twice in a row so
that no record is cut in two. Each record is a u32 length whose top bits say "being written" and
"given up", a u32 for the kernel, and the bytes; records start at multiples of 8. Positions only
grow. Loads and stores of x86-64 keep their order, which is what this relies on.

What is read stays in the ring until it is released: the reader's position is in the map, and where
the map outlives the reader, the next one reads again what this one did not release.
"""

import ctypes
import mmap
import time
from typing import Final

_BUSY: Final = 1 << 31
_DISCARDED: Final = 1 << 30
_HEADER: Final = 8
_PATIENCE: Final = (0.0, *(0.0001,) * 20)
"""Seconds to wait, again and again, for a record that is being written: a copy of 200 bytes, which
takes longer only where the writer was preempted in the middle of it."""


class RingReader:
    """Reads the ring buffer map ``fd``, whose data area is ``size`` bytes, as its only reader."""

    def __init__(self, fd: int, size: int) -> None:
        page = mmap.PAGESIZE
        self._mask = size - 1
        self._mine = mmap.mmap(fd, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self._kernel = mmap.mmap(fd, page + 2 * size, mmap.MAP_SHARED, mmap.PROT_READ, offset=page)
        self._released = ctypes.c_uint64.from_buffer(self._mine)
        self._position = self._released.value
        self._words = memoryview(self._kernel).cast("I")
        self._written = memoryview(self._kernel)[:8].cast("Q")

    @property
    def end(self) -> int:
        """How far the ring is written now, in bytes since it was made."""
        return self._written[0]

    @property
    def empty(self) -> bool:
        """Whether everything in the ring has been read."""
        return self._position >= self.end

    def read(self, limit: int, end: int) -> list[bytes]:
        """Return the oldest records that were not read yet, at most ``limit``, of those to ``end``.

        All of them, unless one stays unfinished for more than two milliseconds.
        """
        records: list[bytes] = []
        kernel, words, mask, data = self._kernel, self._words, self._mask, mmap.PAGESIZE
        position = self._position
        while position < end and len(records) < limit:
            start = data + (position & mask)
            word = words[start >> 2]
            if word & _BUSY:
                word = self._wait(start >> 2)
                if word & _BUSY:
                    break
            length = word & ~_DISCARDED
            if not word & _DISCARDED:
                records.append(kernel[start + _HEADER : start + _HEADER + length])
            position += (length + _HEADER + 7) & ~7
        self._position = position
        return records

    def release(self) -> None:
        """Give back the room of everything that was read."""
        self._released.value = self._position  # one aligned store of 8 bytes: the kernel reads it

    def _wait(self, index: int) -> int:
        word = self._words[index]
        for seconds in _PATIENCE:
            if not word & _BUSY:
                break
            time.sleep(seconds)
            word = self._words[index]
        return word

    def close(self) -> None:
        """Unmap the ring."""
        self._words.release()
        self._written.release()
        self._kernel.close()
        del self._released
        self._mine.close()
