"""When a use that waits is taken for lost."""

from hypothesis import given
from hypothesis import strategies as st

from cima_runc.sensor.overdue import GAP_SECONDS, LOOK_SECONDS, OVERDUE_SECONDS, Overdue

LOOKS = int(OVERDUE_SECONDS / GAP_SECONDS)
"""After the first, until something is overdue."""


def looks(*counts: int, apart: float = GAP_SECONDS) -> dict[int, int]:
    """What the last of some looks returns that found as many uses of one container."""
    overdue = Overdue()
    for at, count in enumerate(counts):
        last = overdue.look({1: count}, at * apart)
    return last


def test_what_waits_is_overdue_in_the_end() -> None:
    assert looks(*[2] * LOOKS) == {}
    assert looks(*[2] * LOOKS, 2) == {1: 2}


def test_looks_that_are_far_apart_are_no_row() -> None:
    assert looks(*[2] * (LOOKS + 1), apart=GAP_SECONDS + 1) == {}


def test_of_another_container_nothing_is_known() -> None:
    overdue = Overdue()
    for at in range(LOOKS):
        overdue.look({1: 1}, at * GAP_SECONDS)
    assert overdue.look({2: 1}, OVERDUE_SECONDS) == {}


@given(st.lists(st.integers(0, 3), min_size=1, max_size=2 * LOOKS))
def test_of_many_that_come_and_go_the_fewest_are_old(counts: list[int]) -> None:
    since_none: list[int] = []
    for count in counts:
        since_none = [*since_none, count] if count else []
    expected = {1: min(since_none)} if len(since_none) > LOOKS else {}
    assert looks(*counts) == expected


def test_looks_are_not_too_near() -> None:
    overdue = Overdue()
    assert overdue.is_due(0.0)
    overdue.look({}, 0.0)
    assert not overdue.is_due(LOOK_SECONDS - 0.1)
    assert overdue.is_due(LOOK_SECONDS)
