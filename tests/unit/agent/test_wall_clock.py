"""Whether the wall clock is believed: hosts that run, are off, and have their clock set."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cima_runc.agent.wall_clock import FILE, LEAP_NS, WAIT_NS, WallClock

_HOUR = 3600 * 10**9
_BEGAN = 50 * 365 * 24 * _HOUR


@dataclass
class Host:
    """A host whose time is known, and what its own clock says."""

    path: Path
    true: int = _BEGAN
    ahead: int = 0
    booted: int = _BEGAN

    def __post_init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Start the agent anew."""
        self.clock = WallClock(
            self.path, lambda: self.true + self.ahead, lambda: self.true - self.booted
        )

    def off(self, hours: float) -> None:
        """Be off for so long, and boot."""
        self.true += int(hours * _HOUR)
        self.booted = self.true
        self.restart()

    def run(self, hours: float) -> list[bool]:
        """Run for so long, with a look every ten minutes: whether the clock was believed."""
        found = [self.believed()]
        for _ in range(int(hours * 6)):
            self.true += _HOUR // 6
            found.append(self.believed())
        return found

    def believed(self) -> bool:
        """Whether the clock is believed now."""
        found = self.clock.believed(_BEGAN)
        assert found in (None, self.true + self.ahead)
        return found is not None


def test_a_clock_that_is_right(tmp_path: Path) -> None:
    """Restarts, nights, and an agent that has run before this was asked."""
    host = Host(tmp_path / FILE)
    assert all(host.run(48))
    host.off(20)
    assert all(host.run(1))
    host.restart()
    assert all(host.run(1))
    host.true += 30 * 24 * _HOUR  # it ran, and nobody asked
    assert host.believed()


@pytest.mark.parametrize("days", [-20_000, -400, -2, 2, 40, 4000])
def test_one_that_is_set_is_believed_after_a_day_of_running(tmp_path: Path, days: int) -> None:
    host = Host(tmp_path / FILE)
    assert all(host.run(2))
    host.ahead = max(days * 24 * _HOUR, -host.true)
    hours = 0
    while not host.run(1)[-1]:
        hours += 1
        if hours in (5, 15):  # it counts on, whoever starts the agent or boots
            host.restart()
            assert not host.believed()
            host.off(3)
    assert hours == 23
    assert all(host.run(48))


@pytest.mark.parametrize("days", [-400, 40])
def test_one_that_is_put_right_is_believed_at_once(tmp_path: Path, days: int) -> None:
    host = Host(tmp_path / FILE)
    host.run(2)
    host.ahead = days * 24 * _HOUR
    assert not any(host.run(20))
    host.ahead = 0
    assert all(host.run(1))
    host.ahead = days * 24 * _HOUR
    assert not any(host.run(20))  # what was waited before counts no more


def test_a_host_that_was_off_for_long(tmp_path: Path) -> None:
    """Nobody knows whether it was: each start of a week counts towards the day."""
    host = Host(tmp_path / FILE)
    host.run(1)
    days = []
    for _ in range(5):
        host.off(60)
        days.append(host.run(8)[-1])
    assert days == [False, False, True, False, False]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"time": -1}', '{"time": "1"}', "\0" * 40])
def test_a_damaged_file_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    host = Host(tmp_path / FILE)
    assert host.believed()
    assert json.loads((tmp_path / FILE).read_text()) == {"time": _BEGAN, "waited": 0}


def test_a_full_disk_changes_nothing(tmp_path: Path) -> None:
    host = Host(tmp_path / "no such directory" / FILE)
    assert all(host.run(2))
    host.ahead = 40 * 24 * _HOUR
    assert not any(host.run(20))


_STEP = st.tuples(
    st.sampled_from(["run", "off", "set", "restart"]),
    st.floats(0, 30),
    st.integers(-1000, 1000),
)


@settings(deadline=None, max_examples=60)
@given(steps=st.lists(_STEP, max_size=12))
def test_no_clock_that_was_just_set_is_believed(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, float, int]]
) -> None:
    """Whatever happens: what is believed is within a day of what was believed before, as far as
    agents have run since, or they have run for a day."""
    host = Host(tmp_path_factory.mktemp("state") / FILE)
    assert host.believed()
    last, ran = host.true + host.ahead, 0

    def look() -> None:
        nonlocal last, ran
        if host.believed():
            now = host.true + host.ahead
            assert abs(now - last - ran) <= LEAP_NS or ran >= WAIT_NS
            last, ran = now, 0

    for what, hours, days in steps:
        match what:
            case "run":
                for _ in range(int(hours)):
                    host.true += _HOUR
                    ran += _HOUR
                    look()
            case "off":
                host.off(hours)
                look()
            case "set":
                host.ahead = max(days * 24 * _HOUR, -host.true)
            case _:
                host.restart()
                look()
