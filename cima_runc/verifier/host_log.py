"""Replaying what evidence shows of the host's log. Source: design, section 7."""

import hashlib
from collections.abc import Iterable

from cima_runc.cpcr import register
from cima_runc.evidence.models import HostLine


def prefix_that_gives(entries: Iterable[bytes | HostLine], value: bytes) -> int | None:
    """Return after how many entries the PCR has ``value`` (32 bytes), None if after none.

    The kernel appends to its log before it extends, and the log is read after the quote: it may
    lead the quote. Entries beyond the prefix are not proved by this quote.
    """
    replayed = register.ZERO
    if replayed == value:
        return 0
    for number, entry in enumerate(entries, start=1):
        replayed = hashlib.sha256(replayed + extended_with(entry)).digest()
        if replayed == value:
            return number
    return None


def extended_with(entry: bytes | HostLine) -> bytes:
    """Return the 32 bytes that the PCR was extended with."""
    if isinstance(entry, bytes):
        return entry
    return b"\xff" * 32 if entry.violation else hashlib.sha256(entry.data).digest()
