"""A software TPM is there as long as whoever runs it."""

import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.waiting import wait_for

PROGRAM = """
import os, signal, sys
from cima_runc.tpm.swtpm import software_tpm
with software_tpm() as tcti:
    print(tcti, flush=True)
    os.kill(os.getpid(), int(sys.argv[1]))
"""


@pytest.mark.parametrize("number", [9, 15, 0])
def test_nothing_is_left_of_it_however_that_ends(tmp_path: Path, number: int) -> None:
    """Kind: what only the process that made it removes."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, f"{number}"],
        env={"TMPDIR": f"{tmp_path}", "PATH": "/usr/bin:/bin:/usr/sbin"},
        cwd=Path(__file__).parents[3],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert (done.returncode, str(tmp_path) in done.stdout) == (-number, True)
    wait_for(lambda: not list(tmp_path.iterdir()) and not names(tmp_path))


def names(place: Path) -> list[Path]:
    """The processes whose arguments name the place."""
    found = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended since
            if bytes(place) in process.read_bytes():
                found.append(process)
    return found
