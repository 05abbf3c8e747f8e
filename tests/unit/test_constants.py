"""One header holds what C, BPF and Python share, and the Python is where it comes from."""

import subprocess
import sys
from pathlib import Path

TOP = Path(__file__).parents[2]


def test_the_header_is_what_the_python_makes() -> None:
    ran = subprocess.run(
        [sys.executable, "-B", TOP / "native/constants.py", "--check"],
        check=False,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr


def test_no_program_defines_what_the_header_does() -> None:
    header = (TOP / "native/constants.h").read_text()
    shared = {line.split()[1] for line in header.splitlines() if line.startswith("#define ")}
    sources = [
        path
        for room in ("native", "hooks", "cima_runc/sensor")
        for path in (TOP / room).glob("*.[ch]")
        if path.name != "constants.h"
    ]
    assert len(sources) > 10
    for path in sources:
        own = {
            line.split()[1] for line in path.read_text().splitlines() if line.startswith("#define ")
        }
        assert not own & shared, path
