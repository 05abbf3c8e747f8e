"""Which lines and branches ran in tests, here and in guests, together."""

import os
import subprocess
from pathlib import Path

from suites import CHECKOUT

TOOL = str(CHECKOUT / ".venv/bin/coverage")
RUN = [TOOL, "run", "-m", "pytest"]
IN_GUEST = "/run/cima-lab/coverage"
"""Where guests that count keep what they counted."""


def environment(directory: Path) -> dict[str, str]:
    """Return what has native tests leave their part in the run's directory."""
    own = directory / "native.coverage"
    own.mkdir(exist_ok=True)
    return {"COVERAGE_FILE": str(own / "data"), "COVERAGE_RCFILE": str(CHECKOUT / "pyproject.toml")}


def show(directory: Path) -> bool:
    """Print the table of what did not run; return whether enough of all did."""
    settings = {**os.environ, "COVERAGE_FILE": str(directory / "coverage")}
    parts = [str(part) for part in sorted(directory.glob("*.coverage/data.*"))]
    combine = [TOOL, "combine", "--quiet", "--keep", *parts]
    if subprocess.run(combine, env=settings, check=False).returncode:
        return False
    return subprocess.run([TOOL, "report"], env=settings, check=False).returncode == 0
