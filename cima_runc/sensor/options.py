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

LARGEST_FILE_BYTES: Final = 4096 * limits.MIB
"""Of a file that is hashed: some ten seconds."""

DIGESTS_SHARE: Final = 65536
"""Files whose digests are kept for one container."""

DIGESTS: Final = 262144
"""Files whose digests are kept in all."""

PATTERN_BYTES: Final = 29
"""Of a name pattern's text (:data:`cima_runc.config.NamePattern`)."""

_HEAD: Final = struct.Struct("=16sQQ")
_PATTERN: Final = struct.Struct(f"=BBB{PATTERN_BYTES}s")
_TAIL: Final = struct.Struct("=QQQQQ")

SETTINGS_SIZE: Final = _HEAD.size + limits.NAME_PATTERNS * _PATTERN.size + _TAIL.size
"""Bytes of ``struct settings``."""


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

    largest_file: int = LARGEST_FILE_BYTES
    """Bytes of a file that may be hashed; larger ones are refused."""
    digests_share: int = DIGESTS_SHARE
    """Files whose digests are kept for one container; above that they are not believed."""
    digests: int = DIGESTS
    """Files whose digests are kept in all; beyond them only files are believed that the container
    cannot have written."""
    late: bool = True
    """Whether a digest that IMA is about to take is waited for, so that no file is hashed twice.
    Takes an IMA policy that measures what containers run."""

    def settings(
        self,
        path_key: bytes,
        *,
        late: bool = True,
        hooks_missing: bool = False,
        casts: bool = False,
    ) -> bytes:
        """Return ``struct settings``, 584 bytes in host byte order; ``path_key`` is random.

        ``late``, ``hooks_missing`` and ``casts`` are what the kernel can do.
        """
        packed = b"".join(_pack_pattern(name) for name in self.reads)
        head = _HEAD.pack(path_key, self.bytes_per_second, len(self.reads))
        can = (self.late and late, hooks_missing, casts)
        tail = _TAIL.pack(self.largest_file, self.digests_share, *can)
        return head + packed.ljust(limits.NAME_PATTERNS * _PATTERN.size, b"\0") + tail


def _pack_pattern(pattern: str) -> bytes:
    text = pattern.strip("*").encode("ascii")
    return _PATTERN.pack(len(text), pattern[0] != "*", pattern[-1] != "*", text)
