"""One request on a socket of the agent's: its framing, and who asks."""

import asyncio
import logging
import socket
import struct

from cima_runc.base import limits
from cima_runc.base.errors import CimaError
from cima_runc.base.text import printable
from cima_runc.runtime.agent_socket import parse_header

_log = logging.getLogger("cima-agent")

REQUEST_SECONDS = 10.0
"""How long a client may take to send its request."""


def peer_uid(channel: socket.socket) -> int:
    """Return the effective uid of who connected, as the agent's user namespace has it."""
    credentials = channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    _, uid, _ = struct.unpack("iII", credentials)
    return int(uid)


async def read_request(reader: asyncio.StreamReader) -> tuple[str, bytes]:
    """Return (verb, body).

    Raises:
        CimaError, asyncio.LimitOverrunError, asyncio.IncompleteReadError: not a request.
        TimeoutError: it did not come in time.
    """
    async with asyncio.timeout(REQUEST_SECONDS):
        line = await reader.readuntil(b"\n")
        verb, length = parse_header(line, limit=limits.REQUEST)
        return verb, await reader.readexactly(length)


def refusal(verb: str, error: Exception) -> tuple[str, bytes]:
    """Log why a request is refused and return the answer that says so."""
    if isinstance(error, TimeoutError):
        return "error", b"the request did not come in time"
    if isinstance(error, OSError):
        _log.error("%s failed: %s", verb, error)
        place = f"{error.filename}: " if error.filename else ""
        return "error", printable(f"{place}{error.strerror}").encode()
    _log.warning("%s refused: %s", verb, error)
    text = str(error) if isinstance(error, CimaError) else printable(str(error))
    return "error", text.encode()
