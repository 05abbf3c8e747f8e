"""Who may come in over the network, how many at once, and how long they may take.

Counted from accept(2) to close(2), so that a connection that never finishes its TLS handshake, or
never sends a request, takes its place and loses it like any other.
"""

import resource
import socket
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from cima_runc.base.rate import network


def share_of_descriptors(wanted: int) -> int:
    """Return how many connections one kind of peers may have: ``wanted``, or fewer.

    Of this process's descriptors an eighth at most: each registered container takes some.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return wanted if soft == resource.RLIM_INFINITY else max(1, min(wanted, soft // 8))


@dataclass
class _Visit:
    channel: "_Connection"
    network: str
    until: float
    """By the monotonic clock, when it is cut off."""


class Door:
    """The connections of one listening socket; used in one thread."""

    def __init__(self, in_all: int, for_each: int, *, silent_seconds: float) -> None:
        """``in_all``: connections at most; ``for_each``: of one address.

        ``silent_seconds``: how long one may have no request under way.
        """
        self._in_all = share_of_descriptors(in_all)
        self._for_each = for_each
        self._silent_seconds = silent_seconds
        self._visits: dict[tuple[str, int], _Visit] = {}
        self._networks: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._visits)

    def listener(self, channel: socket.socket) -> socket.socket:
        """Return the listening socket ``channel`` as one that lets in no more than it may."""
        made = _Listener(channel.family, channel.type, channel.proto, fileno=channel.detach())
        made.door = self
        return made

    def begins(self, client: tuple[str, int], seconds: float) -> None:
        """Heed that a request of this client has begun, which may take so long."""
        self._set(client, seconds)

    def ends(self, client: tuple[str, int]) -> None:
        """Heed that a request of this client has been answered."""
        self._set(client, self._silent_seconds)

    def sweep(self) -> None:
        """Cut off those whose time is over."""
        now = time.monotonic()
        for visit in list(self._visits.values()):
            if visit.until < now:
                with suppress(OSError):
                    visit.channel.shutdown(socket.SHUT_RDWR)

    def _set(self, client: tuple[str, int], seconds: float) -> None:
        visit = self._visits.get(client)
        if visit is not None:
            visit.until = time.monotonic() + seconds

    def enter(self, channel: "_Connection", address: Any) -> bool:
        """Whether a connection that was accepted may stay."""
        where = network(address[0])
        if len(self._visits) >= self._in_all or self._networks[where] >= self._for_each:
            return False
        channel.door, channel.client = self, (address[0], address[1])
        until = time.monotonic() + self._silent_seconds
        self._visits[channel.client] = _Visit(channel, where, until)
        self._networks[where] += 1
        return True

    def leave(self, client: tuple[str, int]) -> None:
        """Heed that a connection is closed."""
        visit = self._visits.pop(client, None)
        if visit is not None:
            self._networks[visit.network] -= 1
            if not self._networks[visit.network]:
                del self._networks[visit.network]


class _Connection(socket.socket):
    door: Door | None = None
    client: tuple[str, int] = ("", 0)

    def close(self) -> None:
        door, self.door = self.door, None
        if door is not None:
            door.leave(self.client)
        super().close()


class _Listener(socket.socket):
    door: Door

    def accept(self) -> tuple[socket.socket, Any]:
        while True:
            accepted, address = super().accept()
            channel = _Connection(
                accepted.family, accepted.type, accepted.proto, fileno=accepted.detach()
            )
            if self.door.enter(channel, address):
                return channel, address
            channel.close()
