"""Connections of the service: how long one may take its place without a whole request, or without
reading an answer.

uvicorn waits without end for a first request, for the rest of a request's head, and for a peer that
does not read. TLS handshakes end by asyncio's own time; a request's body has its end in
:mod:`cima_runc.fleet.guard`.
"""

import asyncio
import resource
from contextlib import suppress
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

_Protocol: Any = object


class Punctual(_Protocol):  # type: ignore[misc]
    """What cuts a connection off that takes too long; stands before a protocol of uvicorn's."""

    silent_seconds = 75.0
    """How long it may be without a request under way; agents keep connections between reports."""
    reading_seconds = 60.0
    """How long the peer may read nothing of what waits for it."""
    _silent: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Heed that the peer is there."""
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Heed that the peer is gone."""
        for timer in (self._silent, self._unread):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        self._wait()
        super().on_response_complete()

    def pause_writing(self) -> None:
        """Heed that the peer does not read as fast as is written."""
        self._unread = self.loop.call_later(self.reading_seconds, self.transport.abort)
        super().pause_writing()

    def resume_writing(self) -> None:
        """Heed that it has read."""
        if self._unread is not None:
            self._unread.cancel()
        super().resume_writing()

    def _wait(self) -> None:
        if self._silent is not None:
            self._silent.cancel()
        self._silent = self.loop.call_later(self.silent_seconds, self._is_silent)

    def _is_silent(self) -> None:
        # Bytes of a request that is not whole count for nothing; one under way has its own ends.
        if self.cycle is None or self.cycle.response_complete:
            self.transport.abort()


class Http(Punctual, AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """HTTP on one connection."""


def take_descriptors() -> None:
    """Let this process have as many files and connections as it may: each host keeps two."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
