"""The agent's log, with priorities and fields in systemd's journal, as lines elsewhere.

A log call names what it is about with ``extra=about(...)``; in the journal that is
``EVENT=container-registered CONTAINER=... REGISTRATION=...``, to be asked for with
``journalctl -u cima-agent EVENT=container-refused``. docs/how-to/logs.md lists the events.
Source: systemd, "Native Journal Protocol"; sd-daemon(3) for JOURNAL_STREAM.
"""

import logging
import os
import socket
import struct
import sys
from typing import Final

from cima_runc.base.text import printable

SOCKET: Final = "/run/systemd/journal/socket"
_FIELDS: Final = ("event", "container", "registration")
_PRIORITIES: Final = (
    (logging.CRITICAL, 2),
    (logging.ERROR, 3),
    (logging.WARNING, 4),
    (logging.INFO, 6),
    (logging.NOTSET, 7),
)
"""syslog(3)'s, by logging's levels."""
_VALUE: Final = 16 * 1024
"""Bytes of one field: the journal takes a datagram of some 200 KiB."""


def about(event: str, *, container: str = "", registration: int | None = None) -> dict[str, str]:
    """Return what a log line is about, for ``extra=`` of a log call."""
    fields = {"event": event}
    if container:
        fields["container"] = container
    if registration is not None:
        fields["registration"] = str(registration)
    return fields


class JournalHandler(logging.Handler):
    """Sends each record as one datagram; what the journal does not take goes to stderr."""

    def __init__(self, path: str = SOCKET) -> None:
        super().__init__()
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.setblocking(False)

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record (of :class:`logging.Handler`)."""
        text = self.format(record)
        try:
            self._socket.sendto(datagram(record, text), self._path)
        except OSError:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Close the socket (of :class:`logging.Handler`)."""
        self._socket.close()
        super().close()


def datagram(record: logging.LogRecord, text: str) -> bytes:
    """Return a record in the journal's native form: each field by name, length and value."""
    level = next(number for least, number in _PRIORITIES if record.levelno >= least)
    fields = {"MESSAGE": text, "PRIORITY": str(level), "SYSLOG_IDENTIFIER": "cima-agent"}
    for name in _FIELDS:
        value = getattr(record, name, None)
        if isinstance(value, str):
            fields[name.upper()] = printable(value)
    return b"".join(_field(name, value) for name, value in fields.items())


def _field(name: str, value: str) -> bytes:
    raw = value.encode("utf-8", "backslashreplace")[:_VALUE]
    return name.encode("ascii") + b"\n" + struct.pack("<Q", len(raw)) + raw + b"\n"


def set_up(level: str) -> None:
    """Log to the journal where it is what standard error leads to, else to standard error."""
    handler: logging.Handler
    if _is_journal(sys.stderr.fileno()):
        handler = JournalHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    logging.basicConfig(level=level, handlers=[handler])


def _is_journal(descriptor: int) -> bool:
    status = os.fstat(descriptor)
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
