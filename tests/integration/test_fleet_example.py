"""examples/fleet as `./dev fleet` starts it."""

import subprocess
import sys
from pathlib import Path

TOP = Path(__file__).parents[2]


def test_the_walk_through() -> None:
    done = subprocess.run(
        [sys.executable, TOP / "examples/fleet/walkthrough.py", "--once"],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for shown in (
        "its signature is good",
        "UNTRUSTED  /tmp/miner was executed",
        "containers UNTRUSTED          1",
        "== The page: https://127.0.0.1:",
    ):
        assert shown in done.stdout, done.stdout
