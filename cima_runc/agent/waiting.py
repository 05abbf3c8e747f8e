"""Requests that wait for evidence: how many of them, of whom, and when they are served.

Source: design, section 6 ("every tenant's quote is over a bind of its own").
"""

import threading
from collections import Counter
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Generic, TypeVar

from cima_runc.base import limits
from cima_runc.base.errors import CimaError
from cima_runc.cpcr.table import MINIMUM_SLOTS
from cima_runc.evidence.request import Asker, Request

BEAT_SECONDS = 0.1
"""Between two beginnings of tenants' quotes, with the fewest slots; in proportion with more, since
that is what the blinded tree costs."""

_T = TypeVar("_T")


class TooManyError(CimaError):
    """Too many requests wait already."""

    def __init__(self) -> None:
        # The same words whoever's requests they are.
        super().__init__("too many requests for evidence wait", hint="ask again later")


@dataclass(frozen=True)
class Waiting(Generic[_T]):
    """One request that waits."""

    request: Request
    asker: Asker
    source: str | None
    """Where it came from; None: from root of this host."""
    answer: "Future[_T]"


class WaitingRoom(Generic[_T]):
    """All requests that wait. May be used by several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[Waiting[_T]] = []

    def add(self, request: Request, asker: Asker, source: str | None) -> "Future[_T]":
        """Have a request wait, and return where its answer will be.

        Raises:
            TooManyError: in all, for this container, or from this source.
        """
        one = Waiting[_T](request, asker, source, Future())
        with self._lock:
            containers = Counter(other.request.container for other in self._waiting)
            sources = Counter(other.source for other in self._waiting)
            if (
                len(self._waiting) >= limits.AGGREGATION_PLACES
                or containers[request.container] >= limits.WAITING_FOR_ONE_CONTAINER
                or (source is not None and sources[source] >= limits.WAITING_FROM_ONE_SOURCE)
            ):
                raise TooManyError
            self._waiting.append(one)
        return one.answer

    def take(self) -> list[Waiting[_T]]:
        """Return all that wait; from now on they do not. Who has gone away is not among them: an
        answer that is not wanted any more takes none, and the others are answered together."""
        with self._lock:
            taken, self._waiting = self._waiting, []
        return [one for one in taken if one.answer.set_running_or_notify_cancel()]


def beat_seconds(slots: int) -> float:
    """Return the time between two beginnings of tenants' quotes.

    By the number of slots, not by what containers do: waiting is no meter of the neighbours.
    """
    return BEAT_SECONDS * slots / MINIMUM_SLOTS


def until_beat(now: float, slots: int) -> float:
    """Return the seconds from ``now`` (monotonic) to the next beat."""
    beat = beat_seconds(slots)
    return beat - now % beat
