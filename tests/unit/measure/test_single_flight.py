import itertools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from cima_runc.measure import single_flight
from cima_runc.measure.layer import Check, no_check
from cima_runc.measure.single_flight import SingleFlight
from tests.support.waiting import wait_for


class Work:
    """Counts how often it is done, and goes on when told."""

    def __init__(self) -> None:
        self.done = 0
        self.at_once = 0
        self.most_at_once = 0
        self.begun = threading.Semaphore(0)
        self.go_on = threading.Semaphore(0)
        self._lock = threading.Lock()

    def __call__(self, check: Check) -> int:
        with self._lock:
            self.done += 1
            number = self.done
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        self.begun.release()
        try:
            while not self.go_on.acquire(timeout=0.01):
                check()
        finally:
            with self._lock:
                self.at_once -= 1
        return number


@pytest.fixture(name="pool")
def _pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(64) as pool:
        yield pool


def ask(
    pool: ThreadPoolExecutor,
    work: SingleFlight,
    what: Callable[[Check], int],
    check: Check = no_check,
    key: object = "key",
) -> Future[int]:
    def within_turn() -> int:
        with work.turn():
            return work.do(key, what, check)

    return pool.submit(within_turn)


class Observed(SingleFlight):
    """Knows how many threads wait for others."""

    waiting = 0

    def _wait_for(self, other: single_flight._Round, check: Check) -> None:
        with self._lock:
            self.waiting += 1
        try:
            super()._wait_for(other, check)
        finally:
            with self._lock:
                self.waiting -= 1

    @property
    def free_turns(self) -> int:
        return self._turns.free


def test_fifty_at_once_cost_two(pool: ThreadPoolExecutor) -> None:
    shared_work, work = Observed(4), Work()
    first = ask(pool, shared_work, work)
    assert work.begun.acquire(timeout=60)
    others = [ask(pool, shared_work, work) for _ in range(49)]
    # Whoever waits has given his turn up.
    wait_for(lambda: (shared_work.waiting, shared_work.free_turns) == (49, 3))
    assert work.done == 1
    work.go_on.release()
    assert first.result(60) == 1
    assert work.begun.acquire(timeout=60)
    work.go_on.release()
    assert [other.result(60) for other in others] == [2] * 49
    assert shared_work.free_turns == 4
    assert not shared_work._latest


def test_who_asks_later_gets_what_was_begun_later(pool: ThreadPoolExecutor) -> None:
    shared_work, work = Observed(2), Work()
    answers = []
    for _ in range(3):
        answers.append(ask(pool, shared_work, work))
        assert work.begun.acquire(timeout=60)
        # One after the other, and the second of them is asked for while the first goes on.
        answers.append(ask(pool, shared_work, work))
        wait_for(lambda: shared_work.waiting == 1)
        work.go_on.release()
        assert work.begun.acquire(timeout=60)
        work.go_on.release()
        wait_for(lambda: all(answer.done() for answer in answers))
    assert [answer.result(60) for answer in answers] == [1, 2, 3, 4, 5, 6]
    assert work.most_at_once == 1


def test_other_keys_wait_for_a_turn_only(pool: ThreadPoolExecutor) -> None:
    shared_work, work = Observed(2), Work()
    answers = [ask(pool, shared_work, work, key=key) for key in range(5)]
    for _ in answers:
        assert work.begun.acquire(timeout=60)
        work.go_on.release()
    assert sorted(answer.result(60) for answer in answers) == [1, 2, 3, 4, 5]
    assert work.most_at_once <= 2


def test_an_error_is_shared(pool: ThreadPoolExecutor) -> None:
    shared_work, work = Observed(4), Work()
    first = ask(pool, shared_work, work)
    assert work.begun.acquire(timeout=60)
    failed = 0

    def fails(_check: Check) -> int:
        nonlocal failed
        failed += 1
        raise OSError("it is gone")

    others = [ask(pool, shared_work, fails) for _ in range(10)]
    wait_for(lambda: shared_work.waiting == 10)
    work.go_on.release()
    assert first.result(60) == 1
    for other in others:
        with pytest.raises(OSError, match="it is gone"):
            other.result(60)
    assert failed == 1
    assert shared_work.free_turns == 4


class ImpatientError(Exception):
    """Waited too long."""


@pytest.mark.parametrize("when", ["while it waits", "while it works"])
def test_who_gives_up_gives_up_for_nobody_else(
    pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    monkeypatch.setattr(single_flight, "_ASK_AGAIN_SECONDS", 0.01)
    shared_work, work = Observed(4), Work()
    impatient = threading.Event()

    def check() -> None:
        if impatient.is_set():
            raise ImpatientError

    first = ask(pool, shared_work, work)
    assert work.begun.acquire(timeout=60)
    leader = ask(pool, shared_work, work, check)
    wait_for(lambda: shared_work.waiting == 1)
    others = [ask(pool, shared_work, work) for _ in range(10)]
    wait_for(lambda: shared_work.waiting == 11)
    if when == "while it works":
        work.go_on.release()
        assert first.result(60) == 1
        assert work.begun.acquire(timeout=60)
    impatient.set()
    with pytest.raises(ImpatientError):
        leader.result(60)
    assert work.begun.acquire(timeout=60)
    for _ in range(20):
        work.go_on.release()
    later = {other.result(60) for other in others}
    assert min(later) > (2 if when == "while it works" else 1)
    assert first.result(60) == 1
    assert shared_work.free_turns == 4
    assert not shared_work._latest


def test_who_waits_for_others_may_give_up(
    pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(single_flight, "_ASK_AGAIN_SECONDS", 0.01)
    shared_work, work = Observed(4), Work()
    first = ask(pool, shared_work, work)
    assert work.begun.acquire(timeout=60)
    second = ask(pool, shared_work, work)
    wait_for(lambda: shared_work.waiting == 1)

    def check() -> None:
        raise ImpatientError

    with pytest.raises(ImpatientError):
        ask(pool, shared_work, work, check).result(60)
    work.go_on.release()
    work.go_on.release()
    assert (first.result(60), second.result(60)) == (1, 2)


def test_long_work_keeps_nobody_out(
    pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of some containers has a file that takes for ever: others start all the same."""
    monkeypatch.setattr(single_flight, "_SLICE_SECONDS", 0.02)
    shared_work, works = Observed(2), [Work() for _ in range(8)]
    long = [ask(pool, shared_work, work, key=number) for number, work in enumerate(works)]
    for work in works:
        assert work.begun.acquire(timeout=60)
    quick = [ask(pool, shared_work, lambda _: 1, key=("quick", number)) for number in range(8)]
    assert [one.result(60) for one in quick] == [1] * 8
    assert not any(one.done() for one in long)
    for work in works:
        work.go_on.release()
    assert [one.result(60) for one in long] == [1] * 8
    wait_for(lambda: shared_work.free_turns == 2)


def test_all_threads_of_one_work_wait_for_its_turn(
    pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(single_flight, "_SLICE_SECONDS", 0.02)
    shared_work = SingleFlight(1)
    ends = time.monotonic() + 1.0
    steps: list[int] = []

    def work(which: int, check: Check) -> int:
        def step() -> None:
            while time.monotonic() < ends:
                check()
                steps.append(which)
                time.sleep(0.001)

        with ThreadPoolExecutor(4) as threads:
            for one in [threads.submit(step) for _ in range(4)]:
                one.result(60)
        return which

    both = [
        ask(pool, shared_work, lambda check, which=which: work(which, check), key=which)  # type: ignore[misc]
        for which in (0, 1)
    ]
    assert [one.result(60) for one in both] == [0, 1]
    assert shared_work._turns.free == 1
    # In turn, and not side by side: then nearly every step would follow one of the other.
    switches = sum(1 for one, other in itertools.pairwise(steps) if one != other)
    assert set(steps) == {0, 1} and 4 <= switches < len(steps) / 4
