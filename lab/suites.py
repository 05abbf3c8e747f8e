"""Which guests the tests in tests/vm want.

A directory there with a file `guest-options` (options of `./dev vm`, `#` starts a comment) is a
suite of its own, for guests started with these options; one with `--debian` is for that release
only. All other tests share guests that are started without any.
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
TESTS = Path("tests/vm")
ON_RELEASES = re.compile(r"^pytestmark = pytest\.mark\.debian\(([^)]*)\)", re.MULTILINE)


@dataclass(frozen=True)
class Suite:
    """Tests that share guests; `directory` is relative to the checkout."""

    directory: Path

    @property
    def options(self) -> list[str]:
        """The options of `./dev vm` for its guests."""
        file = CHECKOUT / self.directory / "guest-options"
        return shlex.split(file.read_text(), comments=True) if file.is_file() else []

    def is_for(self, release: str) -> bool:
        """Whether it has guests of that release."""
        options = self.options
        return "--debian" not in options or options[options.index("--debian") + 1] == release


def all_tests() -> list[str]:
    """Return the files with guest tests, relative to the checkout."""
    return [
        str(file.relative_to(CHECKOUT)) for file in sorted((CHECKOUT / TESTS).rglob("test_*.py"))
    ]


def suite_of(test: str) -> Suite:
    """Return the suite of a test, a file of tests or a directory."""
    path = Path(test.partition("::")[0])
    for above in (path, *path.parents):
        if (CHECKOUT / above / "guest-options").is_file():
            return Suite(above)
    return Suite(TESTS)


def runs_on(test: str, release: str, everything: bool) -> bool:
    """Whether anything of a file of tests runs on a release.

    A whole module may say that other releases are enough for it. Which of its tests do is for
    pytest in the guest; this only saves guests that would run none.
    """
    file = CHECKOUT / test.partition("::")[0]
    if not suite_of(test).is_for(release):
        return False
    if everything or not file.is_file():
        return True
    found = ON_RELEASES.search(file.read_text())
    return found is None or release in re.findall(r"\"([^\"]+)\"", found[1])
