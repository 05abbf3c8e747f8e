import hashlib
import struct
import time
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cima_runc.verifier.boot_log import EventLogError, replay


def header(algorithms: list[tuple[int, int]]) -> bytes:
    spec = b"Spec ID Event03\0" + bytes(4) + b"\0\2\0\2" + struct.pack("<I", len(algorithms))
    spec += b"".join(struct.pack("<HH", *one) for one in algorithms) + b"\0"
    return struct.pack("<II20sI", 0, 3, b"", len(spec)) + spec


def event(pcr: int, kind: int, digests: list[tuple[int, bytes]], data: bytes = b"") -> bytes:
    packed = b"".join(struct.pack("<H", algorithm) + digest for algorithm, digest in digests)
    head = struct.pack("<III", pcr, kind, len(digests))
    return head + packed + struct.pack("<I", len(data)) + data


BOTH = [(4, 20), (11, 32)]
LOG = header(BOTH) + event(7, 1, [(4, b"1" * 20), (11, b"2" * 32)], b"data")


def test_replay() -> None:
    assert replay(LOG) == {7: hashlib.sha256(bytes(32) + b"2" * 32).digest()}


def test_no_action_is_not_extended_but_sets_the_locality() -> None:
    digests = [(4, bytes(20)), (11, bytes(32))]
    assert replay(LOG + event(1, 3, digests)) == replay(LOG)
    started = header(BOTH) + event(0, 3, digests, b"StartupLocality\0\x03")
    assert replay(started) == {0: bytes(31) + b"\3"}


ZERO = [(4, bytes(20)), (11, bytes(32))]
ONE = [(4, b"1" * 20), (11, b"2" * 32)]
STARTED_AT_3 = event(0, 3, ZERO, b"StartupLocality\0\x03")
STARTED_AT_4 = event(0, 3, ZERO, b"StartupLocality\0\x04")
MEASURED = event(0, 8, ONE, b"version")
HCRTM = event(0, 0x80000010, ONE, b"HCRTM")


def extended(start: int, times: int) -> bytes:
    value = bytes(31) + bytes([start])
    for _ in range(times):
        value = hashlib.sha256(value + b"2" * 32).digest()
    return value


@pytest.mark.parametrize(
    ("events", "value"),
    [
        ([STARTED_AT_3, MEASURED], extended(3, 1)),
        # Wherever it stands, it hides no event that was shown.
        ([MEASURED, STARTED_AT_3, MEASURED], extended(3, 2)),
        ([STARTED_AT_3, STARTED_AT_3, MEASURED], extended(3, 1)),
        # The hardware measured: with or without a word on the locality.
        ([HCRTM, MEASURED], extended(4, 2)),
        ([STARTED_AT_4, HCRTM, MEASURED], extended(4, 2)),
        ([STARTED_AT_3, HCRTM], extended(4, 1)),
        # What is never extended needs no digest of our bank.
        ([event(0, 3, []), event(0, 3, [(4, bytes(20))]), MEASURED], extended(0, 1)),
        ([MEASURED, bytes(16)], extended(0, 1)),
        ([MEASURED, bytes(1000)], extended(0, 1)),
    ],
)
def test_what_pcr_0_began_with(events: list[bytes], value: bytes) -> None:
    assert replay(header(BOTH) + b"".join(events)) == {0: value}


@pytest.mark.parametrize(
    "log",
    [
        b"",
        LOG[:-1],
        header([(4, 20)]) + event(0, 1, [(4, bytes(20))]),
        LOG + event(0, 1, [(12, bytes(48))]),
        LOG + event(0, 1, []),
        LOG + event(0, 1, [(4, bytes(20))]),
        LOG + bytes(16) + event(0, 1, ONE),
        LOG + STARTED_AT_3 + STARTED_AT_4,
        LOG + event(0, 1, [(11, bytes(32))] * 3),
        b"\0" * 32 + b"Spec ID Event00\0",
    ],
)
def test_refused(log: bytes) -> None:
    with pytest.raises(EventLogError):
        replay(log)


@given(st.binary(max_size=200), st.integers(0, len(LOG)))
def test_anything_is_read_or_refused(data: bytes, at: int) -> None:
    with suppress(EventLogError):
        replay(LOG[:at] + data)


def test_zeros_that_are_not_the_end_take_no_longer_than_other_events() -> None:
    # Each of them is an event of no digest; the log does not end with them.
    log = header(BOTH) + bytes(16) * 20_000 + event(0, 3, [], b"x")
    began = time.process_time()
    with pytest.raises(EventLogError, match="no SHA-256 digest"):
        replay(log)
    # It was the square of their number: more than ten seconds.
    assert time.process_time() - began < 4
