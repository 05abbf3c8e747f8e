"""One request on a socket of the agent's: its framing, who asks, and how it is answered."""

import asyncio
import logging
import os
import select
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, Self

from cima_runc.base import limits
from cima_runc.base.errors import CimaError
from cima_runc.base.text import printable
from cima_runc.runtime.agent_socket import parse_header

_log = logging.getLogger("cima-agent")

REQUEST_SECONDS = 10.0
"""How long a client may take to send its request."""
STALLED_SECONDS = 10.0
"""How long a client may read nothing of its answer."""
ANSWER_SECONDS = 600.0
"""How long a client may take to read all of its answer."""
_QUESTIONS = frozenset({"activate", "attest", "enrolment", "log", "ps", "status"})
"""What people ask; all else is an engine's hook, or changes something."""
_MISTAKE = 400
"""Characters of an unexpected error that are logged in its line."""
_CHUNK = 64 * limits.KIB
"""Bytes of an answer in memory at a time."""


@dataclass(frozen=True)
class StoredBody:
    """An answer's body that is a file's beginning, and is read while it is sent."""

    handle: int
    """Descriptor of the file; :meth:`close` closes it."""
    length: int
    """Bytes of the body."""

    def chunks(self) -> Iterator[bytes]:
        """Yield the body.

        Raises:
            OSError: the file cannot be read, or has become shorter.
        """
        at = 0
        while at < self.length:
            chunk = os.pread(self.handle, min(_CHUNK, self.length - at), at)
            if not chunk:
                raise OSError("a file that only grows has become shorter")
            at += len(chunk)
            yield chunk

    def close(self) -> None:
        """Let go of the file."""
        os.close(self.handle)


Body = bytes | StoredBody


class _HasFileno(Protocol):
    def fileno(self) -> int: ...


def peer_uid(channel: socket.socket) -> int:
    """Return the effective uid of who connected, as the agent's user namespace has it."""
    credentials = channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    _, uid, _ = struct.unpack("iII", credentials)
    return int(uid)


class Caller:
    """Who asked, and whether an answer is still waited for; may be asked in any thread."""

    def __init__(self, channel: _HasFileno) -> None:
        # A descriptor of its own: asyncio closes the other when the client goes, at any time.
        self._channel = socket.socket(fileno=os.dup(channel.fileno()))

    def waits(self) -> bool:
        """Whether the other end is open."""
        if self._channel.fileno() < 0:
            return False
        poll = select.poll()
        poll.register(self._channel, select.POLLRDHUP)
        return not poll.poll(0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()


async def read_request(
    reader: asyncio.StreamReader, *, limit: int = limits.REQUEST
) -> tuple[str, bytes]:
    """Return (verb, body), the body of at most ``limit`` bytes.

    Raises:
        CimaError, asyncio.LimitOverrunError, asyncio.IncompleteReadError: not a request.
        TimeoutError: it did not come in time.
    """
    async with asyncio.timeout(REQUEST_SECONDS):
        line = await reader.readuntil(b"\n")
        verb, length = parse_header(line, limit=limit)
        return verb, await reader.readexactly(length)


async def send_answer(writer: asyncio.StreamWriter, word: str, body: Body) -> None:
    """Send an answer to a client that reads on, and let go of the body.

    Raises:
        OSError: the client has gone, or reads too slowly (TimeoutError); it is cut off.
    """
    # Else the transport would take all that we have, however slowly it is read.
    writer.transport.set_write_buffer_limits(high=_CHUNK)
    try:
        if isinstance(body, bytes):
            chunks: Iterator[bytes] = (body[at : at + _CHUNK] for at in range(0, len(body), _CHUNK))
            length = len(body)
        else:
            chunks, length = body.chunks(), body.length
        # Together with what comes first: most answers are one packet then.
        writer.write(f"{word} {length}\n".encode("ascii") + next(chunks, b""))
        async with asyncio.timeout(ANSWER_SECONDS):
            async with asyncio.timeout(STALLED_SECONDS):
                await writer.drain()
            for chunk in chunks:
                writer.write(chunk)
                async with asyncio.timeout(STALLED_SECONDS):
                    await writer.drain()
    except BaseException:
        writer.transport.abort()
        raise
    finally:
        if isinstance(body, StoredBody):
            body.close()


def refusal(verb: str, error: Exception, *, is_logged: bool = True) -> tuple[str, bytes]:
    """Log why a request is refused, unless enough is logged, and return the answer that says so."""
    if is_logged:
        _log_refusal(verb, error)
    if isinstance(error, TimeoutError):
        return "error", b"the request did not come in time"
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        return "error", printable(f"{place}{error.strerror}").encode()
    if not isinstance(error, CimaError | asyncio.LimitOverrunError):
        # A mistake of ours. A hook that got no answer would take it that no agent is there.
        return "error", b"the agent made a mistake, its log says which"
    text = str(error) if isinstance(error, CimaError) else printable(str(error))
    return "error", text.encode()


def _log_refusal(verb: str, error: Exception) -> None:
    if isinstance(error, TimeoutError):
        return
    if isinstance(error, OSError):
        _log.error("%s failed: %s", verb, error)
    elif not isinstance(error, CimaError | asyncio.LimitOverrunError):
        _log.error("%s failed: %s", verb, printable(repr(error)[:_MISTAKE]), exc_info=error)
    else:
        # Who asks is told; the administrator need not act on somebody's typing mistake.
        asked = verb.partition(" ")[0] in _QUESTIONS
        _log.log(logging.INFO if asked else logging.WARNING, "%s refused: %s", verb, error)
