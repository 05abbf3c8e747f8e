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
    """The runs of a line."""

    def __init__(self, seen: Iterable[SeenRun]) -> None:
        self._seen = sorted(seen)
        self._rows = [one.row for one in self._seen]
        self._highest = list(itertools.accumulate((one.run for one in self._seen), max))
        self._following: defaultdict[int | None, list[SeenRun]] = defaultdict(list)
        for one in self._seen:
            self._following[one.registration_before].append(one)

    def are_forgotten_by(self, one: SeenRun) -> bool:
        """Return whether a run leaves out one that was seen before it.

        A run may be shown after those that went on from it. These told of it then, and have to
        account for all that is later than it.
        """
        until = bisect_left(self._rows, one.row)
        if not until or self._highest[until - 1] <= one.before:
            return False
        if not self._was_told_of(one):
            return True
        return any(one.before < other.run <= one.run for other in self._seen[:until])

    def _was_told_of(self, one: SeenRun) -> bool:
        """Whether one that was seen before goes on from it, or from one that does."""
        todo, looked_at = [one], {one.row}
        while todo:
            for following in self._following.get(todo.pop().registration, ()):
                if following.row < one.row:
                    return True
                # A host may say of runs that they go on from each other, or from themselves.
                if following.row not in looked_at:
                    looked_at.add(following.row)
                    todo.append(following)
        return False
