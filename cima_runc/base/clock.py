"""Wall-clock time as people read it."""

import time
from datetime import datetime


def now() -> str:
    """Return the time in UTC, RFC 3339 with milliseconds."""
    return at(since_1970())


def since_1970() -> int:
    """Return the time in nanoseconds since 1970, as somebody has set it."""
    return time.time_ns()


def at(nanoseconds: int) -> str:
    """Return RFC 3339 with milliseconds for ``nanoseconds`` since 1970."""
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{text}.{rest // 1_000_000:03d}Z"


def read(text: str) -> int:
    """Return nanoseconds since 1970 of RFC 3339.

    Raises:
        ValueError: it is none.
    """
    return int(datetime.fromisoformat(text).timestamp() * 1000) * 1_000_000


def hour() -> str:
    """Return the time in UTC cut to the hour: ``2025-01-31T13:00:00Z``."""
    return hour_of(now())


def hour_of(time: str) -> str:
    """Return a time in UTC (RFC 3339) cut to the hour."""
    return f"{time[:13]}:00:00Z"


def since_boot() -> int:
    """Return the nanoseconds since the host booted, suspension counted: nobody sets this clock."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)
