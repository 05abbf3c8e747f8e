"""A throw-away guest: QEMU with a TPM 2.0, on a snapshot of a disk."""

import os
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from acceleration import EMULATED, acceleration
from held import bound
from machine import CPU, LAB, GuestError, Machine
from qmp import Monitor

PORTS = ("out", "err", "files", "control")
CONSOLE_LINES = 60


@dataclass(frozen=True)
class Storage:
    """Where the guest's disk and memory are.

    What it writes to a disk that is not `kept` goes with it. Without a file its memory is QEMU's
    own; with `memory_kept` what it writes to the file's memory is written to the file.
    """

    disk: Path
    format: str = "raw"
    kept: bool = False
    memory: Path | None = None
    memory_kept: bool = False


def _processor(machine: Machine, image: Path) -> list[str]:
    if machine.instructions:
        return ["-accel", EMULATED, "-icount", "shift=0", "-smp", "1"]
    return ["-accel", acceleration(image), "-smp", "2"]


class Guest:
    """One guest, with everything of it in `directory`; `ports` are this end of its serial ports."""

    def __init__(self, directory: Path) -> None:
        self.ports: dict[str, socket.socket] = {}
        self.console = directory / "console"
        self._directory = directory
        self._tpm_state = directory / "tpm"
        self._tpm_control = directory / "tpm.sock"
        self._monitor: socket.socket | None = None
        self._children: list[subprocess.Popen[bytes]] = []

    def make_tpm(self) -> Path:
        """Make a new TPM; return the certificates of those who vouch for its keys."""
        subprocess.run([str(LAB / "tpm.sh"), str(self._tpm_state)], check=True)
        return self._tpm_state / "ca.pem"

    def start(
        self, machine: Machine, image: Path, job: Path, storage: Storage, *, frozen: bool = False
    ) -> None:
        """Start it with the kernel in `image` and the archive `job` as its first disk.

        A `frozen` one waits for its state, and its TPM for what it knew; another machine with a TPM
        needs `make_tpm` first.
        """
        if machine.tpm:
            self._start_tpm()
        drive = f"file={storage.disk},format={storage.format},if=none,id=root,cache=unsafe"
        command = [
            "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none",
            "-machine", "pc" + (",memory-backend=memory" if storage.memory else ""),
            *_processor(machine, image), "-cpu", CPU, "-m", str(machine.memory),
            "-kernel", f"{image}/vmlinuz", "-initrd", f"{image}/initramfs",
            "-append", machine.kernel_arguments, "-serial", f"file:{self.console}",
            "-drive", f"file={job},readonly=on,format=raw,if=none,id=job",
            "-device", "virtio-blk-pci,drive=job",
            "-drive", drive + ("" if storage.kept else ",snapshot=on"),
            "-device", "virtio-blk-pci,drive=root",
            "-netdev", "user,id=net,restrict=on", "-device", "virtio-net-pci,netdev=net,romfile=",
            "-device", "virtio-rng-pci", "-device", "virtio-serial-pci",
        ]  # fmt: skip
        if storage.memory:
            share = "on" if storage.memory_kept else "off"
            command += ["-object", f"memory-backend-file,id=memory,size={machine.memory}M,"
                        f"mem-path={storage.memory},share={share}"]  # fmt: skip
        if frozen:
            command += ["-incoming", "defer"]
        self._monitor, far = socket.socketpair()
        far_ends = [far]
        command += ["-chardev", f"socket,id=monitor,fd={far.fileno()}"]
        command += ["-mon", "chardev=monitor,mode=control"]
        for name in PORTS:
            self.ports[name], far = socket.socketpair()
            far_ends.append(far)
            command += ["-chardev", f"socket,id={name},fd={far.fileno()}"]
            command += ["-device", f"virtserialport,chardev={name},name={name}"]
        if not (machine.packages or machine.reboots):
            command += ["-no-reboot"]
        if machine.tpm:
            command += ["-chardev", f"socket,id=tpm,path={self._tpm_control}"]
            command += ["-tpmdev", "emulator,id=tpm,chardev=tpm", "-device", "tpm-crb,tpmdev=tpm"]
        self._spawn("qemu", command, [far.fileno() for far in far_ends])
        for far in far_ends:
            far.close()

    def monitor(self) -> Monitor:
        """Return a conversation with QEMU itself; there is one for each guest."""
        assert self._monitor is not None
        return Monitor(self._monitor)

    def processor_seconds(self) -> float:
        """Return how long processors have worked for the guest."""
        try:
            text = Path(f"/proc/{self._children[-1].pid}/stat").read_text()
        except (OSError, IndexError):
            return 0.0
        fields = text.rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def wait(self, seconds: float) -> None:
        """Wait for QEMU to end by itself."""
        self._children[-1].wait(seconds)

    def last_words(self) -> str:
        """Return the end of the kernel's messages and what QEMU itself printed."""
        lines = []
        if self.console.exists():
            lines = self.console.read_text(errors="replace").splitlines()[-CONSOLE_LINES:]
        return "\n".join([*lines, self._said("qemu")]).strip()

    def stop(self) -> None:
        """End the guest and its TPM."""
        for child in reversed(self._children):
            child.kill()
            child.wait()
        for port in (*self.ports.values(), self._monitor):
            if port is not None:
                port.close()

    def _start_tpm(self) -> None:
        self._tpm_state.mkdir(exist_ok=True)
        self._spawn(
            "swtpm",
            ["swtpm", "socket", "--tpm2", "--terminate", "--tpmstate", f"dir={self._tpm_state}",
             "--ctrl", f"type=unixio,path={self._tpm_control}"],
        )  # fmt: skip
        while not self._tpm_control.exists():
            if self._children[-1].poll() is not None:
                raise GuestError(f"swtpm ended at once: {self._said('swtpm')}")
            time.sleep(0.01)

    def _spawn(self, name: str, command: list[str], fds: list[int] | None = None) -> None:
        """Start a child with a log of its own, which ends if this process is killed."""
        with (self._directory / f"{name}.log").open("wb") as log:
            self._children.append(
                subprocess.Popen(
                    bound(command, "KILL"),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=fds or [],
                    env={**os.environ, "TMPDIR": str(self._directory)},
                    start_new_session=True,
                )
            )

    def _said(self, name: str) -> str:
        log = self._directory / f"{name}.log"
        return log.read_text(errors="replace").strip() if log.exists() else ""
