"""`./dev demo`, in a guest that has more containers than its own, prints what its README shows."""

import re
from pathlib import Path

import pytest

from tests.vm import guest

CHECKOUT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.debian("12")  # of its libraries is the transcript


def test_readme_shows_what_the_demo_prints() -> None:
    ran = guest.run("sh", str(CHECKOUT / "examples/demo/demo.sh"), timeout=300)
    guest.run("docker", "rm", "-f", "alice", "bobby")
    assert ran.code == 0, ran
    assert "DIFFER" in ran.out and ran.out.count("  agree") == 3
    printed = {unlike_each_run(line) for line in ran.out.splitlines()}
    shown = (CHECKOUT / "examples/demo/README.md").read_text()
    shown = shown.partition("    == Two containers of it")[2]
    lines = [unlike_each_run(line) for line in shown.splitlines()[1:] if line.strip()]
    assert len(lines) > 40
    # Other tests' containers have a pod or a verdict, for which `cima ps` then has columns.
    missing = [line for line in lines if line not in printed and not line.startswith("CONTAINER")]
    assert not missing, missing


def unlike_each_run(line: str) -> str:
    """Without digests, times, counts, and how wide a table's columns became."""
    line = re.sub(r"[0-9a-f]{12,}|\d+", "N", line.strip())
    return re.sub(r"\s+(-\s+)?", " ", line)
