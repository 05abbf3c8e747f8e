#!/usr/bin/python3
"""Runs a script as root in a throw-away Debian guest with a TPM 2.0, an IMA policy and this checkout.

The script's stdout and stderr arrive unmixed and unchanged, its exit status becomes this program's
(128 + n after signal n, 124 after --timeout, 125 when the guest itself failed), and nothing of the
guest is left afterwards. The guest's disk is a cached image that is never written to.
"""

import argparse
import ctypes
import io
import json
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

LAB = Path(__file__).resolve().parent
CHECKOUT = LAB.parent
ACCELERATION = os.environ.get("CIMA_VM_ACCEL", "tcg,thread=multi")
BOOT_SECONDS = 240
GUEST_FAILED = 125
CHUNK = 1 << 16


class GuestError(Exception):
    """The guest could not do its part; the message says what happened."""


def arguments(argv: list[str]) -> argparse.Namespace:
    """Parse the command line of `./dev vm`."""
    parser = argparse.ArgumentParser(
        prog="./dev vm",
        description="Run SCRIPT as root in a fresh guest; stdout, stderr and exit status are its own.",
    )

    def pair(text: str) -> tuple[str, str]:
        left, colon, right = text.partition(":")
        if not (left and colon and right):
            raise argparse.ArgumentTypeError(f"{text!r} is not FROM:TO")
        return left, right

    add = parser.add_argument
    add("--debian", choices=["12", "13"], default="12", help="the guest's release (default: 12)")
    add("--put", type=pair, action="append", default=[], metavar="LOCAL:GUEST",
        help="copy a file or directory into the guest before the script runs")
    add("--get", type=pair, action="append", default=[], metavar="GUEST:LOCAL",
        help="copy a file or directory out after the script, also when it failed")
    add("--no-agent", action="store_true", help="do not start cima-agent")
    add("--no-policy", action="store_true", help="load no IMA policy")
    add("--no-tpm", action="store_true", help="a guest without a TPM")
    add("--append", default="", metavar="ARGS", help="more kernel arguments")
    add("--memory", type=int, default=3072, metavar="MIB", help="the guest's memory (default: 3072)")
    add("--timeout", type=float, metavar="SECONDS", help="kill the script after that (status 124)")
    add("--keep-console", metavar="FILE", help="keep the kernel's messages in FILE")
    add("--verbose", action="store_true", help="say on stderr how long each step took")
    add("script", metavar="SCRIPT", help="an executable or a script on this machine")
    add("args", nargs=argparse.REMAINDER, metavar="ARG", help="arguments of the script")
    return parser.parse_args(argv)


def image(release: str) -> Path:
    """Return the directory with the guest's disk and kernel, made first if need be."""
    made = subprocess.run([LAB / "image.sh", release], stdout=subprocess.PIPE, text=True, check=False)
    if made.returncode:
        raise GuestError(f"the image of the Debian {release} guest could not be made")
    return Path(made.stdout.strip())


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

    def owned_by_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = 0
        member.uname = member.gname = "root"
        return member

    def source(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        return None if member.name.endswith("__pycache__") else owned_by_root(member)

    def executable(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.mode = 0o755
        return owned_by_root(member)

    with tarfile.open(disk, "w") as archive:
        for part in ("tests", "pyproject.toml"):
            if (CHECKOUT / part).exists():
                archive.add(CHECKOUT / part, f"opt/cima-test/{part}", filter=source)
        for local, guest in options.put:
            name = f"{guest}{Path(local).resolve().name}" if guest.endswith("/") else guest
            archive.add(local, name.lstrip("/"), filter=owned_by_root)
        archive.add(options.script, script, filter=executable)
        text = json.dumps(job).encode()
        member = tarfile.TarInfo("run/cima-lab/job.json")
        member.size = len(text)
        archive.addfile(member, io.BytesIO(text))


def die_with_parent() -> None:
    """Let the kernel end a child whose parent was killed (prctl PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


class Guest:
    """One running guest: its TPM, its QEMU and the near ends of its ports."""

    def __init__(self, directory: Path, options: argparse.Namespace) -> None:
        self.directory = directory
        self.console = directory / "console"
        self.children: list[subprocess.Popen[bytes]] = []
        self.ports: dict[str, socket.socket] = {}
        self.options = options

    def start(self, image: Path, job: Path) -> None:
        """Start the TPM and the guest."""
        options = self.options
        kernel = [
            "root=/dev/nvme0n1 rw console=ttyS0 quiet loglevel=4 panic=-1 mitigations=off",
            "systemd.show_status=0 net.ifnames=0",
            "systemd.mask=cima-agent.service" if options.no_agent else "",
            "init=/usr/libexec/cima-lab-no-policy" if options.no_policy else "",
            options.append,
        ]
        command = [
            "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
            "-accel", ACCELERATION, "-cpu", "max", "-smp", "2", "-m", str(options.memory),
            "-kernel", str(image / "vmlinuz"), "-append", " ".join(filter(None, kernel)),
            "-serial", f"file:{self.console}",
            "-drive", f"file={image}/root.ext4,format=raw,if=none,id=root,snapshot=on",
            "-drive", f"file={job},format=raw,if=none,id=job,readonly=on",
            "-device", "nvme,serial=lab,id=nvme",
            "-device", "nvme-ns,drive=root,bus=nvme",
            "-device", "nvme-ns,drive=job,bus=nvme",
            "-netdev", "user,id=net,restrict=on", "-device", "virtio-net-pci,netdev=net,romfile=",
            "-device", "virtio-rng-pci", "-device", "virtio-serial-pci",
        ]  # fmt: skip
        far_ends = []
        for name in ("out", "err", "files", "control"):
            self.ports[name], far = socket.socketpair()
            far_ends.append(far)
            command += ["-chardev", f"socket,id={name},fd={far.fileno()}"]
            command += ["-device", f"virtserialport,chardev={name},name={name}"]
        if not options.no_tpm:
            command += ["-chardev", f"socket,id=tpm,path={self.start_tpm()}"]
            command += ["-tpmdev", "emulator,id=tpm,chardev=tpm", "-device", "tpm-crb,tpmdev=tpm"]
        self.spawn(command, "qemu", pass_fds=[far.fileno() for far in far_ends])
        for far in far_ends:
            far.close()

    def start_tpm(self) -> Path:
        """Make a new TPM, with an EK certificate of the lab's own authority, and start it."""
        state = self.directory / "tpm"
        subprocess.run([LAB / "tpm.sh", state], check=True)
        control = self.directory / "tpm.sock"
        self.spawn(
            ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={state}", "--terminate",
             "--ctrl", f"type=unixio,path={control}"],
            "swtpm",
        )  # fmt: skip
        while not control.exists():
            if self.children[-1].poll() is not None:
                raise GuestError("swtpm ended at once:\n" + self.said("swtpm"))
            time.sleep(0.01)
        return control

    def spawn(self, command: list[str], name: str, pass_fds: list[int] | None = None) -> None:
        """Start a child that does not outlive this process and writes to a log of its own."""
        with (self.directory / f"{name}.log").open("wb") as log:
            self.children.append(
                subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=pass_fds or [],
                    env={**os.environ, "TMPDIR": str(self.directory)},
                    preexec_fn=die_with_parent,
                    start_new_session=True,
                )
            )

    def said(self, name: str) -> str:
        """Return what QEMU or swtpm printed."""
        return (self.directory / f"{name}.log").read_text(errors="replace").strip()

    def last_words(self) -> str:
        """Return the end of the kernel's messages and what QEMU itself printed."""
        lines = self.console.read_text(errors="replace").splitlines() if self.console.exists() else []
        return "\n".join([*lines[-25:], self.said("qemu")]).strip()

    def stop(self) -> None:
        """End the guest and its TPM."""
        for child in reversed(self.children):
            child.kill()
            child.wait()
        for port in self.ports.values():
            port.close()


class Job:
    """The conversation with the guest about one job."""

    def __init__(
        self, guest: Guest, sinks: dict[str, BinaryIO], on_start: Callable[[], None]
    ) -> None:
        self.guest = guest
        self.sinks = sinks
        self.received = dict.fromkeys(sinks, 0)
        self.started = False
        self.on_start = on_start
        self.result: dict[str, Any] | None = None
        self.pending = b""

    def run(self) -> dict[str, Any]:
        """Pass the guest's streams on until the job is done and return what the guest said of it."""
        deadline = time.monotonic() + BOOT_SECONDS
        with selectors.DefaultSelector() as selector:
            for name, port in self.guest.ports.items():
                selector.register(port, selectors.EVENT_READ, name)
            while not self.done():
                if not self.started and time.monotonic() > deadline:
                    raise GuestError(f"the guest ran no script within {BOOT_SECONDS} s")
                for key, _ in selector.select(1):
                    data = key.fileobj.recv(CHUNK)
                    if not data:
                        raise GuestError("the guest died")
                    if key.data == "control":
                        self.heard(data)
                    else:
                        self.sinks[key.data].write(data)
                        self.sinks[key.data].flush()
                        self.received[key.data] += len(data)
        return self.result

    def done(self) -> bool:
        """Whether the job ended and every byte of its streams is here."""
        return self.result is not None and self.received == self.result["sent"]

    def heard(self, data: bytes) -> None:
        """Take in messages of the guest's, one JSON object a line."""
        *lines, self.pending = (self.pending + data).split(b"\n")
        for message in map(json.loads, lines):
            if message["event"] == "trouble" and message["fatal"]:
                raise GuestError(message["what"])
            if message["event"] == "trouble":
                say(message["what"])
            elif message["event"] == "started":
                self.started = True
                self.on_start()
            else:
                self.result = message


def say(text: str) -> None:
    """Tell the caller something about the guest, as opposed to what the script says."""
    print(f"./dev vm: {text}", file=sys.stderr, flush=True)


def fetch(archive: Path, places: list[tuple[str, str]], scratch: Path) -> None:
    """Unpack what the guest sent and put each file or directory where the caller wants it.

    GNU tar strips a leading slash and refuses `..`, so nothing lands outside `scratch`.
    """
    scratch.mkdir()
    subprocess.run(["tar", "-xf", archive, "-C", scratch, "--no-same-owner"], check=True)
    for index, (guest, local) in enumerate(places):
        source, target = scratch / str(index), Path(local)
        if local.endswith("/") or target.is_dir() and not source.is_dir():
            target = target / Path(guest).name
        if not os.path.lexists(source):
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir() and not source.is_symlink():
            shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)
        else:
            shutil.copy2(source, target, follow_symlinks=False)


def run(options: argparse.Namespace, directory: Path) -> int:
    """Boot a guest, run the job in it and return the exit status."""
    begun = time.monotonic()
    steps = []

    def step(name: str) -> None:
        steps.append(f"{name} {time.monotonic() - begun:.1f} s")

    disk = image(options.debian)
    step("image")
    job, archive = directory / "job.tar", directory / "files.tar"
    write_job(job, options)
    guest = Guest(directory, options)
    try:
        guest.start(disk, job)
        with archive.open("wb") as files:
            sinks = {"out": sys.stdout.buffer, "err": sys.stderr.buffer, "files": files}
            talk = Job(guest, sinks, lambda: step("script started"))
            result = talk.run()
        step("script ended")
    except GuestError as error:
        raise GuestError(f"{error}\n{guest.last_words()}".rstrip()) from None
    finally:
        guest.stop()
        if options.keep_console and guest.console.exists():
            shutil.copyfile(guest.console, options.keep_console)
    if options.verbose:
        say(", ".join(steps))
    if options.get:
        fetch(archive, options.get, directory / "files")
    for what in result["missing"]:
        say(f"--get: {what}")
    status = int(result["status"])
    return GUEST_FAILED if result["missing"] and status == 0 else status


def main() -> int:
    """Run `./dev vm`."""
    options = arguments(sys.argv[1:])
    for local in [options.script, *(local for local, _ in options.put)]:
        if not Path(local).exists():
            say(f"{local}: no such file")
            return GUEST_FAILED
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, lambda number, _frame: sys.exit(128 + number))
    with tempfile.TemporaryDirectory(prefix="cima-vm-") as directory:
        try:
            return run(options, Path(directory))
        except GuestError as error:
            say(str(error))
            return GUEST_FAILED


if __name__ == "__main__":
    sys.exit(main())
