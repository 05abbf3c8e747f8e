"""Work that many threads ask for: so many at once, and the same once for all that wait for it.

Fifty containers that start at once from one image ask for the same layer fifty times. Whoever asks
while it is being measured cannot use that result: what was read before he asked may have changed
since. But all that have asked by the time the next measurement begins share that one, so that fifty
cost two; and what each gets was read after he had asked.

Work that takes long lets others in between: whose container has a file of a terabyte, all zeros
perhaps, must not keep everybody else's from starting.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from cima_runc.measure.layer import Check

_T = TypeVar("_T")

_ASK_AGAIN_SECONDS = 1.0
"""How long is waited for others before ``check`` is asked again whether to go on."""


_SLICE_SECONDS = 1.0
"""How long work goes on before it lets those in who wait for a turn."""


class _Turns:
    """So many turns, handed on in the order in which they were asked for."""

    def __init__(self, count: int) -> None:
        self.free = count
        self._lock = threading.Lock()
        self._waiting: deque[threading.Event] = deque()

    @property
    def wanted(self) -> bool:
        """Whether somebody waits for one."""
        return bool(self._waiting)

    def acquire(self) -> None:
        with self._lock:
            if self.free:
                self.free -= 1
                return
            mine = threading.Event()
            self._waiting.append(mine)
        mine.wait()

    def release(self) -> None:
        with self._lock:
            if self._waiting:
                self._waiting.popleft().set()
            else:
                self.free += 1


class _Slice:
    """The time that one work, which may use several threads, has had of its turn."""

    def __init__(self, turns: _Turns) -> None:
        self._turns = turns
        self._lock = threading.Lock()
        self._began = time.monotonic()

    def give_way(self) -> None:
        """Give the turn to those that wait, and wait for it again, if it was had for long."""
        if not self._is_over():
            return
        # Its other threads wait here meanwhile.
        with self._lock:
            if self._is_over():
                self._turns.release()
                self._turns.acquire()
                self._began = time.monotonic()

    def _is_over(self) -> bool:
        return self._turns.wanted and time.monotonic() - self._began >= _SLICE_SECONDS


class _Round:
    """The work of one key, done once."""

    def __init__(self, earlier: "_Round | None") -> None:
        self.earlier = earlier
        """What must end before this begins."""
        self.has_begun = False
        self.ended = threading.Event()
        self.is_given_up = False
        """Whether it has no result since who did it would wait no longer."""
        self.result: Any = None
        self.error: BaseException | None = None


class SingleFlight:
    """Hands out turns to work, and what others' work has resulted in."""

    def __init__(self, at_once: int) -> None:
        """``at_once``: how many threads may work side by side."""
        self._turns = _Turns(at_once)
        self._lock = threading.Lock()
        self._latest: dict[Hashable, _Round] = {}

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for a turn, and have it; :meth:`do` gives it up for as long as it waits, and in
        between where its work takes long."""
        self._turns.acquire()
        try:
            yield
        finally:
            self._turns.release()

    def do(self, key: Hashable, work: Callable[[Check], _T], check: Check) -> _T:
        """Return what ``work`` results in, begun after this call. To be called within a turn.

        ``key`` stands for the work: who gives the same key asks for the same. ``check`` ends the
        waiting, and the work that it is given to, by raising; others then go on without.
        Raises what ``work`` raises, in every thread that shares it, and what ``check`` does.
        """
        while True:
            with self._lock:
                latest = self._latest.get(key)
                if latest is None or latest.has_begun:
                    mine = self._latest[key] = _Round(latest)
                    break
            self._wait_for(latest, check)
            if latest.error is not None:
                raise latest.error
            if not latest.is_given_up:
                result: _T = latest.result
                return result
        try:
            return self._lead(mine, work, check)
        finally:
            with self._lock:
                if self._latest.get(key) is mine:
                    del self._latest[key]
            mine.ended.set()

    def _lead(self, mine: _Round, work: Callable[[Check], _T], check: Check) -> _T:
        """Do the work for all that wait for this round."""

        def own_check() -> None:
            try:
                check()
            except BaseException:
                mine.is_given_up = True
                raise

        def own_check_within_turn() -> None:
            own_check()
            part.give_way()

        try:
            if mine.earlier is not None:
                self._wait_for(mine.earlier, own_check)
                mine.earlier = None
            with self._lock:
                mine.has_begun = True
            part = _Slice(self._turns)
            mine.result = result = work(own_check_within_turn)
            return result
        except BaseException as error:
            if not mine.is_given_up:
                mine.error = error
            raise

    def _wait_for(self, other: _Round, check: Check) -> None:
        self._turns.release()
        try:
            while not other.ended.wait(_ASK_AGAIN_SECONDS):
                check()
        finally:
            self._turns.acquire()
