"""What a shard's guest says of its tests, and the processor time that they took."""

import json
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shards import Durations

IN_GUEST = "/run/cima-lab/tests.json"
"""Where tests/vm/conftest.py leaves it."""


@dataclass(frozen=True)
class Ran:
    """A test that ran: when it began and ended, in seconds since 1970."""

    test: str
    begun: float
    ended: float


def tests_in(file: Path) -> list[Ran]:
    """Return what the guest's report holds; nothing where there is none."""
    if not file.exists():
        return []
    return [Ran(*each) for each in json.loads(file.read_text())]


def processor_seconds(ran: Sequence[Ran], usage: Path) -> dict[str, float]:
    """Return what each test used of processors, by the samples of `./dev vm --usage`.

    A test is charged with all since the one before it ended: fixtures, imports, the thawing.
    """
    if not usage.exists():
        return {}
    samples = [(float(at), float(used)) for at, used in json.loads(usage.read_text())]
    if not samples:
        return {}

    def used_at(moment: float) -> float:
        after = bisect_left(samples, (moment, 0.0))
        if after in (0, len(samples)):
            return samples[min(after, len(samples) - 1)][1]
        (early, low), (late, high) = samples[after - 1], samples[after]
        return low + (high - low) * (moment - early) / (late - early)

    before = 0.0
    used: dict[str, float] = {}
    for each in sorted(ran, key=lambda each: each.ended):
        now = used_at(each.ended)
        used[each.test] = used.get(each.test, 0.0) + max(0.0, now - before)
        before = max(before, now)
    return used


def by_file(release: str, used: dict[str, float]) -> Durations:
    """Return the same, added up for each file of tests of a release."""
    files: dict[str, float] = {}
    for test, seconds in used.items():
        file = test.partition("::")[0]
        files[file] = files.get(file, 0.0) + seconds
    return {release: files}
