import pytest
from hypothesis import given
from hypothesis import strategies as st

from cima_runc.agent.enrolment_window import (
    MINUTES_MAX,
    REQUESTS,
    EnrolmentClosedError,
    EnrolmentWindow,
    WindowError,
)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_shut_until_root_opens_it() -> None:
    window = EnrolmentWindow()
    with pytest.raises(EnrolmentClosedError, match="not open") as caught:
        window.admit()
    assert caught.value.hint.endswith("cima enroll open --minutes 10")
    window.open(1)
    window.admit()
    window.close()
    with pytest.raises(EnrolmentClosedError):
        window.admit()


@given(st.floats(0.01, MINUTES_MAX), st.floats(0, 2 * 60 * MINUTES_MAX))
def test_open_for_its_time(minutes: float, later: float) -> None:
    clock = Clock()
    window = EnrolmentWindow(clock)
    window.open(minutes)
    clock.now += later
    if later < 60 * minutes - 0.001:
        window.admit()
    elif later > 60 * minutes + 0.001:
        with pytest.raises(EnrolmentClosedError):
            window.admit()


def test_a_few_requests_and_no_more() -> None:
    window = EnrolmentWindow()
    window.open(10)
    for _ in range(REQUESTS):
        window.admit()
    with pytest.raises(EnrolmentClosedError):
        window.admit()
    window.open(10)
    window.admit()


@pytest.mark.parametrize("minutes", [0, -1, MINUTES_MAX + 1, float("inf"), float("nan")])
def test_not_for_ever(minutes: float) -> None:
    window = EnrolmentWindow()
    with pytest.raises(WindowError):
        window.open(minutes)
    with pytest.raises(EnrolmentClosedError):
        window.admit()
