"""Which lines and branches ran in tests, here and in guests, together."""

import os
import subprocess
from collections.abc import Iterable
from pathlib import Path

from suites import CHECKOUT

TOOL = str(CHECKOUT / ".venv/bin/coverage")
NATIVE = "native.coverage"
"""Where native tests leave their part, in the directory of a run."""
RUN = [TOOL, "run", "-m", "pytest"]
IN_GUEST = "/run/cima-lab/coverage"
"""Where guests that count keep what they counted."""


def environment(directory: Path) -> dict[str, str]:
    """Return what has native tests leave their part in the run's directory."""
    own = directory / NATIVE
    own.mkdir(exist_ok=True)
    return {"COVERAGE_FILE": str(own / "data"), "COVERAGE_RCFILE": str(CHECKOUT / "pyproject.toml")}


def show(directory: Path, counted: Iterable[Path]) -> bool:
    """Print the table of what ran in none of the counted parts; return whether enough did."""
    settings = {**os.environ, "COVERAGE_FILE": str(directory / "coverage")}
    parts = [str(part) for each in counted for part in sorted(each.glob("data.*"))]
    combine = [TOOL, "combine", "--quiet", "--keep", *parts]
    if subprocess.run(combine, env=settings, check=False).returncode:
        return False
    return subprocess.run([TOOL, "report"], env=settings, check=False).returncode == 0
