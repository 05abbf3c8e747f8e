"""The clock: records, certificates and a verifier's deadlines are about its time.

Source: adjtimex(2); include/uapi/linux/timex.h.
"""

import ctypes
import os
import struct
import time
from datetime import UTC, datetime
from pathlib import Path

from cima_runc.doctor.finding import UnfitError

_STA_UNSYNC = 0x0040
_TIMEX_SIZE = 208
_STATUS_AT = 40
"""Of ``struct timex`` on 64-bit machines, after modes, offset, freq, maxerror and esterror."""


def look(not_before: float) -> str:
    """Check that the clock is kept right, and is not earlier than ``not_before`` (seconds).

    Raises:
        UnfitError: it is earlier, or nothing keeps it right.
    """
    now = time.time()
    shown = datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    if now < not_before:
        raise UnfitError(
            f"it is {shown}, which is before cima-runc was installed",
            hint="set the clock: records and certificates go by it",
        )
    if not synchronised():
        raise UnfitError(
            f"it is {shown}, and nothing keeps the clock right",
            hint="run systemd-timesyncd or chrony: verifiers compare times with their own",
        )
    return f"{shown}, kept right"


def synchronised() -> bool:
    """Return whether the kernel was told that its clock follows another one.

    Raises:
        OSError: the kernel does not say.
    """
    timex = ctypes.create_string_buffer(_TIMEX_SIZE)
    if ctypes.CDLL(None, use_errno=True).adjtimex(timex) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), "adjtimex")
    (status,) = struct.unpack_from("i", timex, _STATUS_AT)
    return not status & _STA_UNSYNC


def installed_at(launcher: Path) -> float:
    """Return when a file came to be here, seconds since 1970."""
    return launcher.stat().st_ctime
