"""Processes that look like an engine's: a shell each, under the names that an engine's have."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

_SHELL = "/bin/dash"
_LISTEN = """
import os, socket, sys
with socket.socket(socket.AF_UNIX) as listener:
    listener.bind(sys.argv[1]); listener.listen()
    os.setuid(int(sys.argv[2])); print("up", flush=True); sys.stdin.read()
"""


@dataclass(frozen=True)
class Tree:
    """A container's first process with what is behind it."""

    directory: Path
    first: int
    """The container's first process, a child of ``runc``."""


def program(directory: Path, name: str) -> Path:
    """Return a shell under the name of an engine's program, made if need be."""
    path = directory / name
    if not path.exists():
        shutil.copy(_SHELL, path)
    return path.resolve()


@contextmanager
def running(
    path: Path, script: str, *arguments: str, wrapper: Sequence[str] = ()
) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``script`` in a shell that was copied to ``path``, until the end of the block.

    ``wrapper`` is what executes it.

    It has its arguments and libraries by then: a process that executes has neither for a moment.
    """
    command = [*wrapper, path, "-c", f"echo up\n{script}\n:", path.name, *arguments]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=0
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"up\n"
            yield process
        finally:
            os.killpg(process.pid, 9)


@contextmanager
def listening(address: Path, *wrapper: str, uid: int | None = None) -> Iterator[int]:
    """Run a process of a user's that listens on a socket, under ``wrapper``, and give its pid."""
    user = os.getuid() if uid is None else uid
    command = [*wrapper, sys.executable, "-c", _LISTEN, str(address), str(user)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"up\n"
            yield process.pid
        finally:
            process.kill()
            address.unlink(missing_ok=True)


@contextmanager
def container(directory: Path, parent: str, *arguments: str) -> Iterator[Tree]:
    """Run ``parent`` with these arguments, a ``runc`` under it, and a first process under that."""
    with ExitStack() as stack:
        runc = program(directory, "runc")
        pid_file = directory / "first"
        first = directory / "first.sh"
        first.write_text(f"echo $$ >{pid_file}.new\nmv {pid_file}.new {pid_file}\nexec sleep 600\n")
        script = f"{runc} -c 'sh {first}\n:'"
        stack.enter_context(running(program(directory, parent), script, *arguments))
        deadline = time.monotonic() + 30
        while not pid_file.exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        pid = int(pid_file.read_text())
        pid_file.unlink()
        while os.path.basename(os.readlink(f"/proc/{pid}/exe")) != "sleep":
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield Tree(directory, pid)


def replace(path: Path) -> bytes:
    """Put another file under the name ``path``; what was there before."""
    before = path.read_bytes()
    new = path.with_name(f"{path.name}.new")
    shutil.copy(path, new)
    with new.open("ab") as file:
        file.write(b"\0another version\n")
    new.rename(path)
    return before
