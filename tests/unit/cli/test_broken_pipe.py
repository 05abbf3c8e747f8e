"""Who reads a command's output may go away before its verdict is written."""

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("program", "asked"),
    [
        ("cima_runc.cli.main", ["--version"]),
        ("cima_runc.cli.main", ["completion", "bash"]),
        ("cima_runc.fleet.main", ["--help"]),
    ],
)
def test_what_could_not_be_written_is_not_done(program: str, asked: list[str]) -> None:
    """Kind: ``cima verify … | head -1`` ended with 1, which says UNTRUSTED, always."""
    reads, writes = os.pipe()
    os.close(reads)
    try:
        done = subprocess.run(
            [sys.executable, "-m", program, *asked],
            stdout=writes,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )
    finally:
        os.close(writes)
    assert (done.returncode, done.stderr) == (2, b"")
