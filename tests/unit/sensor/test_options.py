import struct

from cima_runc.base import limits
from cima_runc.sensor.options import Options


def pattern(size: int, at_start: int, at_end: int, text: bytes) -> bytes:
    """``struct name_pattern``, field by field."""
    return bytes([size, at_start, at_end]) + text.ljust(29, b"\0")


def test_every_kind_of_pattern() -> None:
    options = Options(bytes_per_second=4096, reads=("*.py", "run-*", "Makefile", "*"))
    packed = options.settings(b"k" * 16)
    assert packed[:32] == b"k" * 16 + struct.pack("=QQ", 4096, 4)
    assert packed[32 : 32 + 4 * 32] == (
        pattern(3, 0, 1, b".py")
        + pattern(4, 1, 0, b"run-")
        + pattern(8, 1, 1, b"Makefile")
        + pattern(0, 0, 0, b"")
    )


def test_as_large_as_the_programs_expect() -> None:
    for names in ((), ("*" + "x" * 29,) * limits.NAME_PATTERNS):
        assert len(Options(reads=names).settings(bytes(16))) == 584


def test_what_the_kernel_can_do_goes_in_last() -> None:
    options = Options(largest_file=7)
    assert options.settings(bytes(16))[-40:] == struct.pack("=QQQQQ", 7, 65536, 1, 0, 0)
    packed = options.settings(bytes(16), late=False, hooks_missing=True, casts=True)
    assert packed[-40:] == struct.pack("=QQQQQ", 7, 65536, 0, 1, 1)
    assert Options(late=False).settings(bytes(16))[-24:] == struct.pack("=QQQ", 0, 0, 0)
