"""Processes called as runtimes and CRIU are, whose children are looked at."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cima_runc.agent.runtime_call import is_restored, is_without_cgroups


@contextmanager
def called(directory: Path, *argv: str) -> Iterator[tuple[int, int]]:
    """A process with this command line, and its child, which has a harmless one of its own.

    It is a shell, for which the first argument is a script.
    """
    (directory / argv[1]).write_text("sleep 60 & echo $!; wait")
    with subprocess.Popen(
        argv, executable="/bin/bash", stdout=subprocess.PIPE, cwd=directory
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        try:
            yield parent.pid, child
        finally:
            os.kill(child, 9)
            parent.kill()


@pytest.mark.parametrize(
    ("argv", "restored"),
    [
        (("runc", "create", "restore"), False),
        (("runc", "run", "-d", "box"), False),
        (("runc", "restore", "-d", "--image-path", "/image", "box"), True),
        (("crun", "restore", "--image-pat=/image", "box"), True),
        (("podman", "container", "restore", "box"), False),
    ],
)
def test_what_a_runtime_is_to_do(tmp_path: Path, argv: tuple[str, ...], restored: bool) -> None:
    with called(tmp_path, *argv) as (_, child):
        assert is_restored(child) is restored


def test_a_process_that_criu_fills(tmp_path: Path) -> None:
    """Whatever called CRIU: its children are copies of it until they are restored."""
    with called(tmp_path, "criu", "swrk", "3") as (criu, _):
        assert is_restored(criu)


def test_one_that_is_gone() -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait()
        assert not is_restored(process.pid)
        assert not is_without_cgroups(process.pid)
