"""Guest tests, divided into shards of about the same work by what they took before."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from suites import CHECKOUT, Suite, runs_on, suite_of

RECORDED = CHECKOUT / "tests/vm/durations.json"
"""Processor seconds of each file of tests on each release, as a run of them recorded."""
SECONDS_PER_TEST = 10.0
"""What a test is expected to take where none of its file was ever recorded."""
SHARD_SECONDS = 150.0
"""A thawed guest translates all code anew: shorter shards do more of that."""

Durations = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Shard:
    """Tests for one guest, and the processor seconds that they are expected to take."""

    release: str
    suite: Suite
    tests: tuple[str, ...]
    seconds: float

    @property
    def title(self) -> str:
        """What people call it."""
        names = [test.removeprefix(f"{self.suite.directory}/") for test in self.tests]
        suite = f" {self.suite.directory.name}" if self.suite.options else ""
        return f"Debian {self.release}{suite}: {' '.join(names)}"


def recorded() -> Durations:
    """Return what the file of durations holds."""
    known: Durations = json.loads(RECORDED.read_text()) if RECORDED.exists() else {}
    return known


def record(measured: Durations) -> None:
    """Put what was measured now in the file of durations, beside what was not run."""
    known = recorded()
    for release, files in measured.items():
        of_release = known.setdefault(release, {})
        of_release.update({file: round(seconds, 1) for file, seconds in files.items()})
        known[release] = {
            file: of_release[file] for file in sorted(of_release) if (CHECKOUT / file).exists()
        }
    RECORDED.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")


def divide(
    tests: Iterable[str], releases: Iterable[str], everything: bool, durations: Durations
) -> list[Shard]:
    """Return shards with all the tests, the longest first."""
    shards: list[Shard] = []
    tests = list(tests)
    for release in releases:
        suites: dict[Suite, dict[str, float]] = {}
        for test in tests:
            if runs_on(test, release, everything):
                file = test.partition("::")[0]
                seconds = durations.get(release, {}).get(file) or guessed(file)
                suites.setdefault(suite_of(test), {})[test] = seconds
        for suite, of_suite in suites.items():
            shards += [
                Shard(release, suite, tuple(sorted(each)), sum(of_suite[test] for test in each))
                for each in balance(of_suite, SHARD_SECONDS)
            ]
    return sorted(shards, key=lambda shard: -shard.seconds)


def guessed(file: str) -> float:
    """Return what a file of tests may take, by their number."""
    path = CHECKOUT / file
    text = path.read_text() if path.is_file() else ""
    return SECONDS_PER_TEST * max(1, len(re.findall(r"^def test_", text, re.MULTILINE)))


def balance(seconds: Mapping[str, float], most: float) -> list[list[str]]:
    """Pack items into as few groups of at most that length as a simple way finds.

    The longest item first, each into the fullest group that has room for it; an item that is longer
    has a group of its own.
    """
    groups: list[list[str]] = []
    lengths: list[float] = []
    for item in sorted(seconds, key=lambda item: (-seconds[item], item)):
        room = [at for at, length in enumerate(lengths) if length + seconds[item] <= most]
        if room:
            at = max(room, key=lambda at: lengths[at])
            groups[at].append(item)
            lengths[at] += seconds[item]
        else:
            groups.append([item])
            lengths.append(seconds[item])
    return groups
