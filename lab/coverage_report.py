"""Which lines and branches ran in tests, here and in guests, together.

As a program: fails where the floor is lower than it ever was in the history of this commit.
"""

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

from suites import CHECKOUT

TOOL = str(CHECKOUT / ".venv/bin/coverage")
NATIVE = "native.coverage"
"""Where native tests leave their part, in the directory of a run."""
RUN = [TOOL, "run", "-m", "pytest"]
IN_GUEST = "/run/cima-lab/coverage"
"""Where guests that count keep what they counted."""
FLOOR = "fail_under"


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


def floor(checkout: Path) -> float:
    """Return what the checkout wants to be covered, in per cent; nothing where it says nothing."""
    settings = tomllib.loads((checkout / "pyproject.toml").read_text())
    return float(settings["tool"]["coverage"]["report"].get(FLOOR, 0))


def highest_floor(checkout: Path) -> float:
    """Return the highest floor in the commits that git has of what led here."""
    # Of merges too, and of what they took nothing from: a floor that one lowered was there before.
    command = ["git", "log", "--full-history", "-m", "-p", "--format=", f"-G^{FLOOR}"]
    ran = subprocess.run(
        [*command, "--", "pyproject.toml"], cwd=checkout, capture_output=True, text=True, check=True
    )
    found = re.findall(rf"^[-+]{FLOOR} *= *([0-9.]+)", ran.stdout, re.MULTILINE)
    return max(map(float, found), default=0.0)


def lowered(checkout: Path) -> str | None:
    """Return what is wrong with the checkout's floor, or None."""
    command = ["git", "rev-parse", "--is-shallow-repository"]
    ran = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)
    if ran.returncode:
        print("coverage: there is no git here: the floor is compared with nothing", file=sys.stderr)
        return None
    if ran.stdout.strip() == "true":
        print("coverage: a shallow clone: only its commits' floors are known", file=sys.stderr)
    now, highest = floor(checkout), highest_floor(checkout)
    if now >= highest:
        return None
    return f"coverage: {FLOOR} in pyproject.toml is {now:g}, and was {highest:g}: it only rises"


if __name__ == "__main__":
    sys.exit(lowered(CHECKOUT))
