"""Python with everything imported already, which forks for each pytest and each `cima` in a guest.

An emulated processor takes seconds for imports. One process listens at SOCKET; a client sends its
three standard descriptors and a JSON object {program, args, env, cwd}, and gets the exit status.
A client that goes takes its program with it.
"""

import array
import contextlib
import gc
import importlib
import io
import json
import os
import pkgutil
import selectors
import signal
import site
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

SOCKET = "/run/cima-lab/preloaded"
INSTALLED = "/opt/cima/bin/python3"
"""The installation's own: `cima` finds by it where it is installed."""
PYTHON = "/opt/cima-test/bin/python"
"""The same with what tests need."""
START_SECONDS = 300
LARGEST_REQUEST = 1 << 18

IMPORTED = (
    "pytest", "_pytest.assertion.rewrite", "_pytest.junitxml", "hypothesis", "hypothesis.stateful",
    "grpc", "cryptography.hazmat.primitives.asymmetric.ec", "cryptography.x509", "tarfile", "ssl",
    "tpm2_pytss",
)  # fmt: skip


def start() -> None:
    """Start the process and return when it listens."""
    with Path("/run/cima-lab/preloaded.log").open("wb") as log:
        subprocess.Popen(
            [INSTALLED, __file__],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            start_new_session=True,
        )
    deadline = time.monotonic() + START_SECONDS
    while not Path(SOCKET).exists():
        assert time.monotonic() < deadline, "the preloaded Python does not start"
        time.sleep(0.1)


def call(program: str, args: Sequence[str], fds: Sequence[int], timeout: float | None) -> int:
    """Run a program there with these three descriptors; return its exit status.

    Raises TimeoutError; the program is ended then.
    """
    request = {"program": program, "args": list(args), "env": dict(os.environ), "cwd": os.getcwd()}
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as channel:
        channel.settimeout(timeout)
        channel.connect(SOCKET)
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))
        channel.sendmsg([json.dumps(request).encode()], [rights])
        answer = channel.recv(16)
    return int(answer or b"-9")


# -- the process ----------------------------------------------------------------------------------


def _import_all() -> None:
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site.addsitedir(f"/opt/cima-test/lib/{version}/site-packages")
    for name in IMPORTED:
        importlib.import_module(name)
    import cima_runc

    for module in pkgutil.walk_packages(cima_runc.__path__, "cima_runc."):
        if not module.name.endswith("__main__"):
            try:
                importlib.import_module(module.name)
            except ImportError as error:  # an extra that is not installed
                print(f"{module.name}: {error}", flush=True)
    sys.modules.pop("__mp_main__", None)


def _become(request: dict[str, Any], fds: Sequence[int]) -> NoReturn:
    """Be the program that was asked for, as if it had just been started."""
    os.setsid()
    for number, fd in enumerate(fds):
        os.dup2(fd, number)
    for fd in fds:
        os.close(fd)
    signal.set_wakeup_fd(-1)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    sys.stdin = sys.__stdin__ = io.TextIOWrapper(io.FileIO(0), "utf-8")  # type: ignore[misc]
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = io.TextIOWrapper(
            io.BufferedWriter(io.FileIO(number, "w")),
            "utf-8",
            errors="surrogateescape" if number == 1 else "backslashreplace",
            line_buffering=number == 2,
            write_through=False,
        )
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    status: Any = 1
    try:
        if request["program"] == "cima":
            from cima_runc.cli.main import main

            sys.argv = ["/opt/cima/bin/cima", *request["args"]]
            status = main()
        else:
            import pytest

            sys.path.insert(0, request["cwd"])
            sys.argv, sys.executable = ["pytest", *request["args"]], PYTHON
            # What it makes of its plugins would be files of somebody else in the installation.
            sys.dont_write_bytecode = True
            from tests.vm.covered import counted

            with counted():
                status = int(pytest.main(request["args"]))
    except SystemExit as end:
        status = end.code
        if isinstance(status, str):
            print(status, file=sys.stderr)
            status = 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        import atexit

        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:
                status = status or 1
    os._exit(status or 0)


def _end(child: int) -> None:
    """Kill it and what it started, unless it has not come as far as to have a group."""
    try:
        os.killpg(child, signal.SIGKILL)
    except ProcessLookupError:
        os.kill(child, signal.SIGKILL)


def _accept(listener: socket.socket) -> tuple[int, socket.socket] | None:
    """Fork for the next client; return the child's process id and the client's channel."""
    channel, _ = listener.accept()
    room = socket.CMSG_SPACE(3 * array.array("i").itemsize)
    raw, ancillary, _, _ = channel.recvmsg(LARGEST_REQUEST, room)
    fds = array.array("i")
    for _, _, data in ancillary:
        fds.frombytes(data)
    if not raw:
        channel.close()
        return None
    child = os.fork()
    if not child:
        listener.close()
        channel.close()
        _become(json.loads(raw), fds)
    for fd in fds:
        os.close(fd)
    return child, channel


def serve() -> None:
    """Serve for ever."""
    _import_all()
    gc.collect()
    gc.freeze()
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener,
        selectors.DefaultSelector() as selector,
    ):
        new = f"{SOCKET}.new"
        listener.bind(new)
        os.chmod(new, 0o600)
        listener.listen(64)
        os.rename(new, SOCKET)
        selector.register(listener, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is listener:
                    if begun := _accept(listener):
                        child, channel = begun
                        ended = os.pidfd_open(child)
                        both = (child, ended, channel)
                        selector.register(ended, selectors.EVENT_READ, both)
                        selector.register(channel, selectors.EVENT_READ, both)
                    continue
                if key.fd not in selector.get_map():
                    continue
                child, ended, channel = key.data
                if key.fileobj is channel:
                    _end(child)
                _, wait_status = os.waitpid(child, 0)
                with contextlib.suppress(OSError):  # it did not wait
                    channel.send(str(os.waitstatus_to_exitcode(wait_status)).encode())
                selector.unregister(ended)
                selector.unregister(channel)
                os.close(ended)
                channel.close()


if __name__ == "__main__":
    serve()
