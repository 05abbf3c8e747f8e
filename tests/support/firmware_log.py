"""The firmware's event log, made by hand.

Source: TCG PC Client Platform Firmware Profile, section 10.2.
"""

import hashlib
import struct
from collections.abc import Iterable


def _sha256(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(parts)).digest()


def firmware_log(*events: tuple[int, bytes]) -> bytes:
    """Return the log of events: a PCR and what is measured into it."""
    spec = b"Spec ID Event03\0" + bytes(4) + b"\0\2\0\2" + struct.pack("<IHHB", 1, 11, 32, 0)
    log = struct.pack("<II20sI", 0, 3, b"", len(spec)) + spec
    for pcr, data in events:
        log += struct.pack("<IIIH", pcr, 13, 1, 11) + _sha256(data)
        log += struct.pack("<I", len(data)) + data
    return log


def added_up(pcrs: Iterable[int], events: Iterable[tuple[int, bytes]]) -> dict[int, bytes]:
    """Return the values that these PCRs have after the events."""
    values = dict.fromkeys(pcrs, bytes(32))
    for pcr, data in events:
        values[pcr] = _sha256(values[pcr], _sha256(data))
    return values
