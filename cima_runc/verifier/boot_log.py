"""The firmware's event log, read and replayed.

Source: TCG PC Client Platform Firmware Profile 1.06, section 10 (TCG_PCR_EVENT2, Spec ID Event03,
StartupLocality, EV_EFI_HCRTM_EVENT); TPM 2.0 Library Part 1, 34.3 (H-CRTM); numbers are
little-endian.
"""

import hashlib
import struct
from collections.abc import Iterable, Iterator

from cima_runc.base import limits
from cima_runc.base.errors import CimaError

_EV_NO_ACTION = 3
_EV_EFI_HCRTM_EVENT = 0x80000010
_HCRTM_LOCALITY = 4
_SHA256 = 0x000B
_SPEC_ID = b"Spec ID Event03\0"
_LOCALITY = b"StartupLocality\0"


class EventLogError(CimaError):
    """The event log is not one, or has no SHA-256 digests."""


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, size: int) -> bytes:
        if self.at + size > len(self.data):
            raise EventLogError("the event log ends within an event")
        self.at += size
        return self.data[self.at - size : self.at]

    def u32(self) -> int:
        return int(struct.unpack("<I", self.take(4))[0])

    def u16(self) -> int:
        return int(struct.unpack("<H", self.take(2))[0])


def replay(log: bytes) -> dict[int, bytes]:
    """Return the values (32 bytes each, SHA-256 bank) of the PCRs that the event log extends.

    Raises:
        EventLogError: it cannot be read.
    """
    if len(log) > limits.EVENT_LOG:
        raise EventLogError(f"the event log has more than {limits.EVENT_LOG} bytes")
    events = list(_events(_Reader(log)))
    values: dict[int, bytes] = {}
    if locality := _startup_locality(events):
        values[0] = bytes(31) + bytes([locality])
    for pcr, kind, digest, _ in events:
        if kind == _EV_NO_ACTION:
            continue
        if digest is None:
            raise EventLogError("an event has no SHA-256 digest")
        values[pcr] = hashlib.sha256(values.get(pcr, bytes(32)) + digest).digest()
    return values


_Event = tuple[int, int, bytes | None, bytes]
"""PCR, type, SHA-256 digest, event data."""


def _startup_locality(events: Iterable[_Event]) -> int:
    """Return what PCR 0 began with, wherever in the log that is said: nothing takes back events.

    Where the hardware itself measured (H-CRTM), it began so whatever locality started the TPM.
    """
    said = set()
    for pcr, kind, _, event in events:
        if kind == _EV_EFI_HCRTM_EVENT and pcr == 0:
            return _HCRTM_LOCALITY
        is_said = kind == _EV_NO_ACTION and event[:-1] == _LOCALITY
        said |= {event[-1]} if is_said else set()
    if len(said) > 1:
        raise EventLogError("the event log says that the TPM was started at several localities")
    return said.pop() if said else 0


def _events(reader: _Reader) -> Iterator[_Event]:
    sizes = _header(reader)
    # Found once: to look through the rest at each event takes hours where all of them are zeros.
    last = len(reader.data.rstrip(b"\0"))
    while reader.at < len(reader.data):
        pcr, kind, count = reader.u32(), reader.u32(), reader.u32()
        if count > len(sizes):
            raise EventLogError("an event has more digests than there are algorithms")
        digests = {}
        for _ in range(count):
            algorithm = reader.u16()
            if algorithm not in sizes:
                raise EventLogError(f"an event has a digest of the algorithm {algorithm:#x}")
            digests[algorithm] = reader.take(sizes[algorithm])
        event = reader.take(reader.u32())
        if not (pcr or kind or count or event) and reader.at >= last:
            return  # what is left of the memory that the firmware had for it
        yield pcr, kind, digests.get(_SHA256), event


def _header(reader: _Reader) -> dict[int, int]:
    """Read the first event; return the size of each algorithm's digests."""
    reader.take(4 + 4 + 20)
    header = _Reader(reader.take(reader.u32()))
    if header.take(len(_SPEC_ID)) != _SPEC_ID:
        raise EventLogError("the event log is not in the crypto-agile form of TPM 2.0")
    header.take(8)
    return {header.u16(): header.u16() for _ in range(min(header.u32(), 16))}
