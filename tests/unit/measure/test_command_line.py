import os
import subprocess

import pytest

from cima_runc.base import limits
from cima_runc.measure.command_line import command_line, environment

_LARGE = f"""
ulimit -s unlimited
export large=$(head -c 100000 /dev/zero | tr '\\0' x)
exec sh -c 'echo up; read wait' {" $large" * 40}
"""


def test_what_a_process_shows_has_an_end() -> None:
    """By its stack's limit a command line can have 6 MiB; by prctl(2), any size."""
    command = ["sh", "-c", _LARGE]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline()
        shown = command_line(process.pid)
        assert shown[:2] == ["sh", "-c"]
        assert 0 <= limits.COMMAND_LINE - sum(map(len, shown)) < 100
        assert environment(process.pid)["large"] == "x" * 100_000
        process.kill()


def test_this_process() -> None:
    assert command_line(os.getpid())[0].rpartition("/")[2].startswith("python")
    assert environment(os.getpid())["PATH"]


def test_a_process_that_is_gone() -> None:
    with pytest.raises(OSError):
        command_line(2**22 + 1)
