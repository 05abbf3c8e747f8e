"""What the sensor is loaded with: ``struct settings`` of sensor.h, and the size of its buffer.

Pure: settings in, bytes of the programs' read-only data out.
"""

import struct
from dataclasses import dataclass
from typing import Final

from cima_runc.base import limits

RING_BYTES: Final = 16 * limits.MIB
"""Size of the ring buffer: room for some 90,000 events with paths of 40 bytes."""

BYTES_PER_SECOND: Final = 4 * limits.MIB
"""Of events that one container may send: some 25,000 with paths of 40 bytes."""

PATH_KEY_BYTES: Final = 16
"""Bytes of the random key of the path hash."""

_HEAD: Final = struct.Struct("=16sQQ")
_PATTERN: Final = struct.Struct("=BBB29s")


@dataclass(frozen=True)
class Options:
    """What a sensor keeps for as long as it is loaded."""

    ring_bytes: int = RING_BYTES
    """Size of the ring buffer: a power of two, at least one page."""
    bytes_per_second: int = BYTES_PER_SECOND
    """What one container may fill of it in a second; above that its events are dropped."""
    reads: tuple[str, ...] = ()
    """Names of files that are reported when they are read, too, at most ``limits.NAME_PATTERNS``,
    as :data:`cima_runc.config.NamePattern` allows them."""

    def settings(self, path_key: bytes) -> bytes:
        """Return ``struct settings``, 544 bytes in host byte order; ``path_key`` is random."""
        packed = b"".join(_pack_pattern(name) for name in self.reads)
        head = _HEAD.pack(path_key, self.bytes_per_second, len(self.reads))
        return head + packed.ljust(limits.NAME_PATTERNS * _PATTERN.size, b"\0")


def _pack_pattern(pattern: str) -> bytes:
    text = pattern.strip("*").encode("ascii")
    return _PATTERN.pack(len(text), pattern[0] != "*", pattern[-1] != "*", text)
