#!/usr/bin/python3
"""Runs a script as root in a throw-away Debian guest in which this checkout is installed.

The script's stdout and stderr arrive unmixed and unchanged, its exit status becomes this program's
(128 + n after signal n, 124 after --timeout, 125 when the guest itself failed), and nothing of the
guest is left afterwards.
"""

import argparse
import io
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from guest import Guest, GuestError, Machine, image

CHECKOUT = Path(__file__).resolve().parent.parent
BOOT_SECONDS = 600
GRACE_SECONDS = 120
GUEST_FAILED = 125
CHUNK = 1 << 16
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def arguments(argv: list[str]) -> argparse.Namespace:
    """Parse the command line of `./dev vm`."""
    parser = argparse.ArgumentParser(
        prog="./dev vm",
        description="""Run SCRIPT as root in a fresh guest in which this checkout is installed, the
        IMA policy is loaded and the agent runs. Output and exit status are the script's own; 124
        means that --timeout passed, 125 that the guest failed.""",
    )

    def pair(text: str) -> tuple[str, str]:
        left, _, right = text.partition(":")
        if not (left and right):
            raise argparse.ArgumentTypeError(f"{text!r} is not FROM:TO")
        return left, right

    add = parser.add_argument
    add_copies = partial(add, type=pair, action="append", default=[])
    add("--debian", choices=["12", "13"], default="12", help="the guest's release (default: 12)")
    add("--kernel", choices=["release", "backports"], default="release", help="the release's own "
        "kernel (default), or the newest that there is for it")  # fmt: skip
    add_copies("--put", metavar="LOCAL:GUEST", help="copy a file or directory in, to this path")
    add_copies("--get", metavar="GUEST:LOCAL", help="copy one out, also when the script failed")
    add("--no-agent", action="store_true", help="do not start cima-agent")
    add("--no-policy", action="store_true", help="load no IMA policy")
    add("--no-tpm", action="store_true", help="a guest without a TPM")
    add("--append", default="", metavar="ARGS", help="more kernel arguments")
    add("--memory", type=int, default=3072, metavar="MIB", help="memory (default: 3072)")
    add("--timeout", type=float, metavar="SECONDS", help="kill the script after that")
    add("--keep-console", type=Path, metavar="FILE", help="keep the kernel's messages in FILE")
    add("--verbose", action="store_true", help="say on stderr how long each step took")
    add("script", metavar="SCRIPT", help="a script or an executable on this machine")
    add("args", nargs=argparse.REMAINDER, metavar="ARG", help="its arguments")
    return parser.parse_args(argv)


def write_job(disk: Path, options: argparse.Namespace) -> None:
    """Write the tar archive that the guest extracts over its `/`."""
    script = f"root/{Path(options.script).name}"
    job = {
        "script": f"/{script}",
        "args": options.args,
        "agent": not options.no_agent,
        "timeout": options.timeout,
        "get": [guest for guest, _ in options.get],
    }

    def of_root(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        member.uid = member.gid = 0
        member.uname = member.gname = "root"
        return None if Path(member.name).name == "__pycache__" else member

    def of_root_executable(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        member.mode = 0o755
        return of_root(member)

    with tarfile.open(disk, "w") as archive:
        for part in ("examples", "tests", "pyproject.toml"):
            if (CHECKOUT / part).exists():
                archive.add(CHECKOUT / part, f"opt/cima-test/{part}", filter=of_root)
        for local, guest in options.put:
            name = f"{guest}{Path(local).resolve().name}" if guest.endswith("/") else guest
            archive.add(local, name.lstrip("/"), filter=of_root)
        archive.add(Path(options.script).resolve(), script, filter=of_root_executable)
        text = json.dumps(job).encode()
        member = tarfile.TarInfo("run/cima-lab/job.json")
        member.size = len(text)
        archive.addfile(member, io.BytesIO(text))


class Job:
    """The conversation with the guest about its job.

    `sinks` are where the streams `out`, `err` and `files` go; `on_start` is called when the script
    starts. `limit` is how long it may run (seconds); the guest itself keeps to it, and what does
    not end `GRACE_SECONDS` later is a guest that hangs.
    """

    def __init__(
        self,
        guest: Guest,
        sinks: dict[str, BinaryIO],
        limit: float | None,
        on_start: Callable[[], None],
    ) -> None:
        self._guest = guest
        self._sinks = sinks
        self._limit = limit
        self._on_start = on_start
        self._deadline: float | None = time.monotonic() + BOOT_SECONDS
        self._late = f"the guest started no script within {BOOT_SECONDS} s"
        self._received = dict.fromkeys(sinks, 0)
        self._result: dict[str, Any] | None = None
        self._pending = b""

    def run(self) -> dict[str, Any]:
        """Pass the streams on until the job is done and return what the guest says of it."""
        with selectors.DefaultSelector() as selector:
            for name, port in self._guest.ports.items():
                selector.register(port, selectors.EVENT_READ, name)
            while self._result is None or self._received != self._result["sent"]:
                for key, _ in selector.select(1):
                    self._receive(key.data)
                if self._deadline and time.monotonic() > self._deadline:
                    raise GuestError(self._late)
        return self._result

    def _receive(self, port: str) -> None:
        data = self._guest.ports[port].recv(CHUNK)
        if not data:
            raise GuestError("the guest died")
        if port == "control":
            *lines, self._pending = (self._pending + data).split(b"\n")
            for line in lines:
                self._heard(json.loads(line))
            return
        self._sinks[port].write(data)
        self._sinks[port].flush()
        self._received[port] += len(data)

    def _heard(self, message: dict[str, Any]) -> None:
        """Take in a message of the guest's."""
        match message["event"]:
            case "refused":
                raise GuestError(message["why"])
            case "note":
                say(message["what"])
            case "started":
                self._deadline = self._limit and time.monotonic() + self._limit + GRACE_SECONDS
                self._late = f"the guest did not end the script {GRACE_SECONDS} s after its time"
                self._on_start()
            case "done":
                self._result = message


def say(text: str) -> None:
    """Tell the caller something about the guest, as opposed to what the script says."""
    print(f"./dev vm: {text}", file=sys.stderr, flush=True)


def unpack(archive: Path, places: list[tuple[str, str]], scratch: Path) -> None:
    """Put each file or directory that the guest sent where the caller wants it.

    GNU tar strips leading slashes and refuses `..`, so that nothing lands outside `scratch` first.
    """
    scratch.mkdir()
    # The guest's clock may be ahead by a breath: no reason for tar to speak up.
    options = ["--no-same-owner", "--warning=no-timestamp"]
    subprocess.run(["tar", "-xf", archive, "-C", scratch, *options], check=True)
    for index, (guest, local) in enumerate(places):
        source, target = scratch / str(index), Path(local)
        if not os.path.lexists(source):
            continue
        directory = source.is_dir() and not source.is_symlink()
        if local.endswith("/") or (target.is_dir() and not directory):
            target /= Path(guest).name
        target.parent.mkdir(parents=True, exist_ok=True)
        if directory:
            shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)
        else:
            shutil.copy2(source, target, follow_symlinks=False)


def run(options: argparse.Namespace, directory: Path) -> int:
    """Boot a guest, run the job in it and return the exit status."""
    begun, steps = time.monotonic(), []

    def step(name: str) -> None:
        steps.append(f"{name} {time.monotonic() - begun:.1f} s")

    machine = Machine(
        release=options.debian,
        kernel=options.kernel,
        agent=not options.no_agent,
        policy=not options.no_policy,
        tpm=not options.no_tpm,
        memory=options.memory,
        append=options.append,
    )
    disk = image(machine.release, machine.kernel)
    step("disk ready")
    job, archive = directory / "job.tar", directory / "files.tar"
    guest = Guest(directory)
    try:
        if machine.tpm:
            certificates = (str(guest.start_tpm()), "/opt/cima-test/tpm-ca.pem")
            options.put = [*options.put, certificates]
        write_job(job, options)
        guest.start(machine, disk, job)
        with archive.open("wb") as files:
            sinks = {"out": sys.stdout.buffer, "err": sys.stderr.buffer, "files": files}
            talk = Job(guest, sinks, options.timeout, lambda: step("script started"))
            result = talk.run()
        step("ended")
    except GuestError as error:
        raise GuestError(f"{error}\n{guest.last_words()}".strip()) from None
    finally:
        guest.stop()
        if options.keep_console and guest.console.exists():
            shutil.copyfile(guest.console, options.keep_console)
    if options.verbose:
        say(", ".join(steps))
    if options.get:
        unpack(archive, options.get, directory / "files")
    for what in result["missing"]:
        say(f"--get: {what}")
    return int(result["status"]) or (GUEST_FAILED if result["missing"] else 0)


def end_on_signal(number: int, _frame: object) -> None:
    """End with the status of the signal, and let no further one disturb the cleaning up."""
    for other in SIGNALS:
        signal.signal(other, signal.SIG_IGN)
    sys.exit(128 + number)


def main() -> int:
    """Run `./dev vm`."""
    options = arguments(sys.argv[1:])
    for local in (options.script, *(local for local, _ in options.put)):
        if not Path(local).exists():
            say(f"{local}: no such file")
            return GUEST_FAILED
    for number in SIGNALS:
        signal.signal(number, end_on_signal)
    with tempfile.TemporaryDirectory(prefix="cima-vm-") as directory:
        try:
            return run(options, Path(directory))
        except GuestError as error:
            say(str(error))
            return GUEST_FAILED


if __name__ == "__main__":
    sys.exit(main())
