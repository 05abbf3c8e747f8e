#!/usr/bin/python3
"""Runs a script as root in a throw-away Debian guest in which this checkout is installed.

The script's stdout and stderr arrive unmixed and unchanged, its exit status becomes this program's
(128 + n after signal n, 124 after --timeout, 125 when the guest itself failed), and nothing of the
guest is left afterwards.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from frozen import Frozen, NotThawedError, freeze
from guest import Guest, Storage
from held import scratch
from job import CERTIFICATES, Conversation, Job
from machine import JOB_DISK, GuestError, Machine, image
from releases import releases

GUEST_FAILED = 125
USAGE_SECONDS = 0.5
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def arguments(argv: list[str]) -> argparse.Namespace:
    """Parse the command line of `./dev vm`."""
    parser = argparse.ArgumentParser(
        prog="./dev vm",
        description="""Run SCRIPT as root in a guest of its own in which this checkout is installed,
        the IMA policy is loaded and the agent runs. Where a guest with no other options was frozen
        before, by the tests, a copy of that is thawed; otherwise one is booted. Output and exit
        status are the script's own; 124 means that --timeout passed, 125 that the guest failed.""",
    )

    def pair(text: str) -> tuple[str, str]:
        left, _, right = text.partition(":")
        if not (left and right):
            raise argparse.ArgumentTypeError(f"{text!r} is not FROM:TO")
        return left, right

    add = parser.add_argument
    add_copies = partial(add, type=pair, action="append", default=[])
    add("--debian", choices=releases(), default="12", help="the guest's release (default: 12)")
    add("--kernel", choices=["release", "backports"], default="release", help="the release's own "
        "kernel (default), or the newest that there is for it")  # fmt: skip
    add_copies("--put", metavar="LOCAL:GUEST", help="copy a file or directory in, to this path")
    add_copies("--get", metavar="GUEST:LOCAL", help="copy one out, also when the script failed")
    add("--no-agent", action="store_true", help="do not start cima-agent")
    add("--no-policy", action="store_true", help="load no IMA policy")
    add("--no-tpm", action="store_true", help="a guest without a TPM")
    add("--packages", action="store_true", help="a guest without cima-runc: /root/packages holds "
        "this checkout's package and bundle, and those of a later version; it reboots")  # fmt: skip
    add("--reboots", action="store_true", help="a guest that may reboot: a script that ends with "
        "75 is run again after that, with $CIMA_LAB_BOOT counted up")  # fmt: skip
    add("--with", dest="more", action="append", default=[], metavar="PACKAGE",
        help="a guest that has this package of Debian's too")  # fmt: skip
    add("--append", default="", metavar="ARGS", help="more kernel arguments")
    add("--memory", type=int, default=3072, metavar="MIB", help="memory (default: 3072)")
    add("--instructions", action="store_true", help="a guest whose clock counts its instructions, "
        "one a nanosecond")  # fmt: skip
    add("--fresh", action="store_true", help="boot a guest, also where one could be thawed")
    add("--frozen", action="store_true", help="freeze a guest first where there is none to thaw")
    add("--timeout", type=float, metavar="SECONDS", help="kill the script after that")
    add("--keep-console", type=Path, metavar="FILE", help="keep the kernel's messages in FILE")
    add(
        "--usage",
        type=Path,
        metavar="FILE",
        help="write the processor time that the guest used to FILE",
    )
    add("--verbose", action="store_true", help="say on stderr how long each step took")
    add("script", metavar="SCRIPT", help="a script or an executable on this machine")
    add("args", nargs=argparse.REMAINDER, metavar="ARG", help="its arguments")
    return parser.parse_args(argv)


def machine_of(options: argparse.Namespace) -> Machine:
    """Return the machine that the options ask for."""
    return Machine(
        release=options.debian,
        kernel=options.kernel,
        agent=not options.no_agent,
        policy=not options.no_policy,
        tpm=not options.no_tpm,
        memory=options.memory,
        append=options.append,
        packages=options.packages,
        reboots=options.reboots,
        more=tuple(sorted(options.more)),
        instructions=options.instructions,
    )


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


class Usage:
    """How much processor time a guest has used by when, for `--usage`."""

    def __init__(self) -> None:
        self.guest: Guest | None = None
        self._samples: list[tuple[float, float]] = []

    def sample(self) -> None:
        """Take a sample, not more often than twice a second."""
        now = time.time()
        if self.guest and (not self._samples or now - self._samples[-1][0] > USAGE_SECONDS):
            self._samples.append((now, self.guest.processor_seconds()))

    def write(self, file: Path) -> None:
        """Write [seconds since 1970, seconds used] pairs as JSON."""
        file.write_text(json.dumps(self._samples))


@dataclass(frozen=True)
class Run:
    """One job in one guest."""

    options: argparse.Namespace
    machine: Machine
    job: Job
    disk: Path
    directory: Path
    talk: Callable[[Guest], Conversation]

    def start(self, stack: ExitStack) -> tuple[Guest, Conversation]:
        """Thaw a guest or boot one; the stack stops it."""
        self.job.write(self._job_disk)
        fits = self._job_disk.stat().st_size == JOB_DISK
        if fits and (frozen := self._frozen()):
            try:
                with ExitStack() as attempt:
                    guest = self._guest(attempt, "thawed")
                    conversation = self.talk(guest)
                    frozen.thaw(guest, conversation, self.machine, self.disk, self._job_disk)
                    stack.push(attempt.pop_all())
                    return guest, conversation
            except NotThawedError as error:
                say(f"{error}; booting another guest")
                frozen.discard()
        guest = self._guest(stack, "booted")
        more = [(str(guest.make_tpm()), CERTIFICATES)] if self.machine.tpm else []
        self.job.write(self._job_disk, *more)
        guest.start(self.machine, self.disk, self._job_disk, Storage(self.disk / "root.ext4"))
        return guest, self.talk(guest)

    @property
    def _job_disk(self) -> Path:
        return self.directory / "job.tar"

    def _guest(self, stack: ExitStack, name: str) -> Guest:
        (self.directory / name).mkdir()
        guest = Guest(self.directory / name)
        stack.callback(guest.stop)
        return guest

    def _frozen(self) -> Frozen | None:
        """The frozen guest to use: one that is there, or with --frozen one that is made now."""
        if self.options.fresh or not self.machine.is_default or not self.job.agent:
            return None
        if not self.options.frozen:
            return Frozen.existing(self.machine, self.disk)
        (self.directory / "freezing").mkdir()
        try:
            return freeze(self.machine, self.disk, self.directory / "freezing")
        except GuestError as error:
            say(f"{error}; booting a guest instead")
            return None


def run(options: argparse.Namespace, directory: Path) -> int:
    """Run the job in a guest and return the exit status."""
    begun, steps = time.monotonic(), []

    def step(name: str) -> None:
        steps.append(f"{name} {time.monotonic() - begun:.1f} s")

    machine = machine_of(options)
    disk = image(machine)
    step("disk ready")
    job = Job(
        script=Path(options.script),
        args=options.args,
        put=options.put,
        get=options.get,
        agent=machine.agent,
        limit=options.timeout,
    )
    archive, usage = directory / "files.tar", Usage()
    with archive.open("wb") as files, ExitStack() as stack:
        sinks = {"out": sys.stdout.buffer, "err": sys.stderr.buffer, "files": files}

        def talk(guest: Guest) -> Conversation:
            usage.guest = guest
            return Conversation(
                guest,
                sinks,
                job.limit,
                on_start=lambda: step("script started"),
                note=say,
                on_tick=usage.sample,
            )

        guest, conversation = Run(options, machine, job, disk, directory, talk).start(stack)
        try:
            result = conversation.run()
        except GuestError as error:
            raise GuestError(f"{error}\n{guest.last_words()}".strip()) from None
        finally:
            step(f"ended, {guest.processor_seconds():.0f} s of processor time,")
            if options.keep_console and guest.console.exists():
                shutil.copyfile(guest.console, options.keep_console)
            if options.usage:
                usage.write(options.usage)
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
    with scratch("cima-guest-") as directory:
        try:
            return run(options, directory)
        except GuestError as error:
            say(str(error))
            return GUEST_FAILED


if __name__ == "__main__":
    sys.exit(main())
