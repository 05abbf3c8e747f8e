"""Runs of one line of containers on one host, as they were seen. Pure.

A host that was put back to an earlier state goes on from there, as if what came since had not been:
two runs then go on from the same one. Source: design, section 6 ("Lines and runs").
"""

import itertools
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class SeenRun:
    """A run whose records are proved."""

    row: int
    """Of what was seen later it is higher."""
    run: int
    registration: int
    before: int
    """The run that it goes on from; 0: it is the first, or does not know."""
    registration_before: int | None
    """That run's registration."""


class SeenRuns:
    """The runs of a line. A report may tell of many thousands, each of which is asked about: what
    that takes is found out once for all of them."""

    def __init__(self, seen: Iterable[SeenRun]) -> None:
        self._seen = sorted(seen)
        self._rows = [one.row for one in self._seen]
        self._highest = list(itertools.accumulate((one.run for one in self._seen), max))
        self._told = self._first_told_of()
        self._below = self._next_below()

    def are_forgotten_by(self, one: SeenRun) -> bool:
        """Return whether a run, one of these, leaves out one that was seen before it.

        A run may be shown after those that went on from it. These told of it then, and have to
        account for all that is later than it.
        """
        until = bisect_left(self._rows, one.row)
        if not until or self._highest[until - 1] <= one.before:
            return False
        if self._told.get(one.registration, one.row) >= one.row:
            return True
        return self._below.get(one.row, 0) > one.before

    def _first_told_of(self) -> dict[int, int]:
        """Return the row of the first that goes on from a registration, or from one that does."""
        before: defaultdict[int, list[int | None]] = defaultdict(list)
        for one in self._seen:
            before[one.registration].append(one.registration_before)
        found: dict[int, int] = {}
        for one in self._seen:
            todo = [one.registration_before]
            while todo:
                # A host may say of runs that they go on from each other, or from themselves.
                registration = todo.pop()
                if registration is not None and registration not in found:
                    found[registration] = one.row
                    todo += before.get(registration, ())
        return found

    def _next_below(self) -> dict[int, int]:
        """Return, by row, the highest run up to its own number of those that were seen before."""
        order = sorted(range(len(self._seen)), key=lambda at: (self._seen[at].run, at))
        lower = {above: below for below, above in itertools.pairwise(order)}
        higher = dict(itertools.pairwise(order))
        found: dict[int, int] = {}
        for at in reversed(range(len(self._seen))):
            # What was seen later is taken out already.
            below, above = lower.get(at), higher.get(at)
            if below is not None:
                found[self._seen[at].row] = self._seen[below].run
                if above is None:
                    del higher[below]
                else:
                    higher[below] = above
            if above is not None:
                if below is None:
                    del lower[above]
                else:
                    lower[above] = below
        return found
