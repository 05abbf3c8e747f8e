"""Runs of a line as a service sees them: in which order ever, and of a host that was put back."""

import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cima_runc.fleet.lines import SeenRun, SeenRuns


def run(row: int, number: int, before: int) -> SeenRun:
    """Run ``number``, whose registration is ten times that, after run ``before``."""
    return SeenRun(row, number, 10 * number, before, 10 * before or None)


@st.composite
def histories(draw: st.DrawFn) -> list[list[SeenRun]]:
    """What each report shows, of a host that tells the truth: the latest run first, and some of
    those before it that were not shown yet, lower numbers first. Numbers are skipped now and
    then."""
    count = draw(st.integers(1, 8))
    gaps = draw(st.lists(st.integers(1, 3), min_size=count, max_size=count))
    numbers = [1]
    for gap in gaps[1:]:
        numbers.append(numbers[-1] + gap)
    before = dict(zip(numbers, [0, *numbers], strict=False))
    waiting: set[int] = set()
    reports: list[list[SeenRun]] = []
    row = 0
    for at, number in enumerate(numbers):
        is_shown = at == count - 1 or draw(st.booleans())
        waiting.add(number)
        if not is_shown:
            continue
        others = sorted(waiting - {number})
        some = draw(st.lists(st.sampled_from(others), unique=True)) if others else []
        waiting -= {number, *some}
        reports.append([])
        for each in sorted([number, *some]):
            row += 1
            reports[-1].append(run(row, each, before[each]))
    for each in draw(st.permutations(sorted(waiting))):
        row += 1
        reports.append([run(row, each, before[each])])
    return reports


@given(histories())
def test_a_host_that_tells_the_truth_forgets_nothing(reports: list[list[SeenRun]]) -> None:
    shown: list[SeenRun] = []
    lived: set[int] = set()
    for report in reports:
        shown += report
        lived |= {one.run for one in report if one.run > max(lived, default=0)} & {max(report).run}
        seen = proved(shown, lived)
        # Those that came before are judged again with them, as where a policy changes.
        assert not [one for one in seen if SeenRuns(seen).are_forgotten_by(one)]
    assert seen == shown


def proved(shown: list[SeenRun], lived: set[int]) -> list[SeenRun]:
    """Those that had a register when they were shown, and those that these go on from."""
    found: set[int] = set()
    todo = [one for one in shown if one.run in lived]
    while todo:
        one = todo.pop()
        found.add(one.run)
        todo += [each for each in shown if each.run == one.before]
    return [one for one in shown if one.run in found]


@given(histories(), st.data())
def test_a_run_that_goes_on_from_an_earlier_one_forgets_what_was_seen_since(
    reports: list[list[SeenRun]], data: st.DataObject
) -> None:
    seen = [one for shown in reports for one in shown]
    last = max(one.run for one in seen)
    before = data.draw(st.sampled_from([0, *(one.run for one in seen if one.run < last)]))
    number = data.draw(st.integers(before + 1, last + 3))
    row = len(seen) + 1
    fork = SeenRun(row, number, 10 * number + 1, before, 10 * before or None)
    after = SeenRun(row + 1, number + 1, 10 * number + 11, number, fork.registration)
    for later in ([], [after]):
        runs = SeenRuns([*seen, fork, *later])
        assert runs.are_forgotten_by(fork)
        assert not [one for one in seen if runs.are_forgotten_by(one)]


def test_a_run_alone_forgets_nothing() -> None:
    assert not SeenRuns([]).are_forgotten_by(run(1, 1, 0))
    assert not SeenRuns([run(2, 2, 1)]).are_forgotten_by(run(1, 1, 0))


@pytest.mark.parametrize(
    "circle",
    [
        [SeenRun(2, 2, 7, 1, 7)],
        [SeenRun(2, 2, 7, 1, 8), SeenRun(3, 5, 8, 4, 7)],
        [SeenRun(2, 2, 7, 1, 9), SeenRun(3, 5, 8, 4, 7), SeenRun(4, 8, 9, 7, 8)],
    ],
)
def test_runs_that_go_on_from_each_other_come_to_an_end(circle: list[SeenRun]) -> None:
    # What a run says of the one before is the host's word, and each number of it is well formed.
    seen = SeenRuns([SeenRun(1, 9, 1, 0, None), *circle])
    assert seen.are_forgotten_by(circle[0])


def lowered(count: int) -> list[SeenRun]:
    """Runs of which the last was shown first, and each tells of the one before it."""
    numbers = range(count, 0, -1)
    return [SeenRun(row, one, one, one - 1, one - 1 or None) for row, one in enumerate(numbers)]


def raised(count: int) -> list[SeenRun]:
    """Runs that go on from each other, after one of a number that is higher than all of theirs."""
    high = SeenRun(1, 1 << 50, 1, 0, None)
    return [high, *(SeenRun(n, 2 * n, n, 2 * n - 1, n - 1) for n in range(2, count))]


def backwards(count: int) -> list[SeenRun]:
    high = SeenRun(1, 1 << 50, 1, 0, None)
    return [high, *(SeenRun(n, 2 * n, n, 2 * n - 1, n + 1) for n in range(2, count))]


@pytest.mark.parametrize("made", [lowered, raised, backwards])
def test_many_runs_of_one_line_take_no_more_than_they_are(
    made: Callable[[int], list[SeenRun]],
) -> None:
    # A report lists 65,536 containers, and its host says of what line each is a run.
    runs = made(30_000)
    began = time.process_time()
    seen = SeenRuns(runs)
    assert len([seen.are_forgotten_by(one) for one in runs]) == len(runs)
    assert time.process_time() - began < 5


@given(st.data())
def test_what_is_said_of_all_runs_is_said_of_each(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 8))
    some = st.integers(1, count)
    runs = [
        SeenRun(row, number := data.draw(some), row, data.draw(some) % number, data.draw(some))
        for row in range(1, count + 1)
    ]
    seen = SeenRuns(runs)
    assert [seen.are_forgotten_by(one) for one in runs] == [forgets(one, runs) for one in runs]


def forgets(one: SeenRun, runs: list[SeenRun]) -> bool:
    """The same by what it means, run by run."""
    earlier = [other for other in runs if other.row < one.row]
    if max((other.run for other in earlier), default=0) <= one.before:
        return False
    after: set[SeenRun] = set()
    more = {one}
    while more:
        told = {each.registration for each in more}
        more = {each for each in runs if each.registration_before in told} - after
        after |= more
    if not any(other.row < one.row for other in after):
        return True
    return any(one.before < other.run <= one.run for other in earlier)
