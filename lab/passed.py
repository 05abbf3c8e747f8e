"""Which tasks passed before with the very same files, and what they counted then.

A machine can be too slow for all tests in the time that there is. Then the ones that never passed
as they are now come first, and what is left of the others is told with when it passed.
"""

import json
import shutil
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cache import CACHE, key, locked, making, prune
from changed import needed_by
from job import PARTS
from suites import CHECKOUT, TESTS

NOT_IN_GUESTS = (
    *("docs/", "tests/unit/", "tests/integration/", "tests/fuzz/", "tests/lab/", ".ci/"),
    *(f"lab/{name}.py" for name in ("run_tests", "lanes", "passed", "shards", "coverage_report")),
)
"""What changes nothing of a guest's tests, but for what of it is in `job.PARTS`: the last ones say
which tests are run beside which, and what is told of them."""
SEEN_NOWHERE = {"tests/vm/durations.json"}
KEPT = 400
KEPT_MINUTES = 3 * 24 * 60.0


@dataclass(frozen=True)
class Before:
    """A task that passed: when (seconds since 1970), of which commit, and what it left behind."""

    at: float
    commit: str
    parts: tuple[Path, ...]


class Files:
    """All files of a commit, each with the hash of what is in it."""

    def __init__(self, hashes: dict[str, str], commit: str) -> None:
        self._hashes = hashes
        self._commit = commit

    @classmethod
    def of_checkout(cls) -> "Files | None":
        """Return those of the checkout; None where something of it is in no commit."""
        if _git("status", "--porcelain") != "":
            return None
        lines = [line.partition("\t") for line in _git("ls-files", "--stage", "-z").split("\0")]
        commit = _git("rev-parse", "HEAD").strip()
        return cls({path: stage for stage, _, path in lines if path not in SEEN_NOWHERE}, commit)

    def key_of(self, title: str, tests: Iterable[str] | None) -> str:
        """Return what stands for a task: all files, or those that a guest with `tests` sees."""
        seen = set(self._hashes)
        if tests is not None:
            needed = {file for test in tests for file in needed_by(test.partition("::")[0])}
            seen = {file for file in seen if file in needed or not _is_apart(file)}
        return key(title, *(f"{self._hashes[file]} {file}" for file in sorted(seen)))

    def before(self, own: str) -> Before | None:
        """Return how the task with that key passed before, if it did."""
        layer = _layer(own)
        with locked(layer):
            if not layer.is_dir():
                return None
            layer.touch()
            told = json.loads((layer / "passed.json").read_text())
            return Before(told["at"], told["commit"], tuple(sorted((layer / "parts").iterdir())))

    def passed(self, own: str, parts: Iterable[Path]) -> None:
        """Remember that the task with that key passed now, and left these directories."""
        layer = _layer(own)
        with locked(layer):
            shutil.rmtree(layer, ignore_errors=True)
            with making(layer) as new:
                (new / "parts").mkdir()
                for part in parts:
                    shutil.copytree(part, new / "parts" / part.name)
                told = {"at": time.time(), "commit": self._commit}
                (new / "passed.json").write_text(json.dumps(told))
        prune("passed", KEPT, KEPT_MINUTES)


def _is_apart(file: str) -> bool:
    if Path(file).name.startswith("test_") and file.startswith(f"{TESTS}/"):
        return True
    return file.startswith(NOT_IN_GUESTS) and not file.startswith(
        tuple(part for part in PARTS if part != "tests")
    )


def _layer(own: str) -> Path:
    return CACHE / f"passed-{own}"


def _git(*words: str) -> str:
    command = ["git", "-C", str(CHECKOUT), *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
