"""Bodies of requests: how much of them is in memory at a time.

One report may have many megabytes, and whoever opens a connection may send one. What is held for
one address, and for all together, has an end; a host that is known has room of its own beside it,
which has an end too: it may open as many connections.
"""

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.requests import Request

from cima_runc.base import limits
from cima_runc.fleet.access import LimitedError


class Bodies:
    """The bodies that are held now, in one event loop."""

    def __init__(
        self,
        each: int = limits.STRANGERS_BODIES,
        most: int | None = 8 * limits.STRANGERS_BODIES,
    ):
        """``each`` is how many bytes are held of one address or host, ``most`` of all; None: what
        one holds is no matter of the others'."""
        self._each = each
        self._most = most
        self._held: Counter[str] = Counter()

    @asynccontextmanager
    async def of(self, request: Request, who: str) -> AsyncIterator[bytes]:
        """Give the body that ``who`` sends; it is held while this lasts.

        Raises:
            LimitedError: there is no more room for what they send.
        """
        parts, size = [], 0
        try:
            async for part in request.stream():
                size += len(part)
                self._held[who] += len(part)
                is_full = self._most is not None and self._held.total() > self._most
                if self._held[who] > self._each or is_full:
                    raise LimitedError("too much is sent at a time", hint="try again in a minute")
                parts.append(part)
            yield b"".join(parts)
        finally:
            self._held[who] -= size
            if not self._held[who]:
                del self._held[who]
