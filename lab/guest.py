"""A throw-away guest: QEMU with a TPM 2.0, on a snapshot of a cached disk."""

import os
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

LAB = Path(__file__).resolve().parent
ACCELERATION = os.environ.get("CIMA_VM_ACCEL", "tcg,thread=multi")
CPU = "max,la57=off,avx=off,avx2=off"
"""Five-level page tables and AVX only cost time where they are emulated."""
PORTS = ("out", "err", "files", "control")
CONSOLE_LINES = 60


class GuestError(Exception):
    """The guest could not do its part; the message says what happened."""


@dataclass(frozen=True)
class Machine:
    """What a guest is started with.

    `memory` is in MiB, `append` holds more kernel arguments. Without `agent` the unit cima-agent is
    masked, without `policy` the kernel gets no IMA policy, without `tpm` there is no TPM.
    `kernel` is `release` for the release's own, or `backports` for the newest that there is for it.
    """

    release: str
    kernel: str
    agent: bool
    policy: bool
    tpm: bool
    memory: int
    append: str


def image(release: str, kernel: str) -> Path:
    """Return the directory with the guest's disk and kernel, made first if need be."""
    command = [str(LAB / "image.sh"), release, kernel]
    made = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if made.returncode:
        raise GuestError(f"the Debian {release} guest could not be built")
    return Path(made.stdout.strip())


class Guest:
    """One guest, with everything of it in `directory`; `ports` are this end of its serial ports."""

    def __init__(self, directory: Path) -> None:
        self.ports: dict[str, socket.socket] = {}
        self.console = directory / "console"
        self._directory = directory
        self._tpm_control = directory / "tpm.sock"
        self._children: list[subprocess.Popen[bytes]] = []

    def start_tpm(self) -> Path:
        """Make a new TPM and start it; return the certificates of those who vouch for its keys."""
        state = self._directory / "tpm"
        subprocess.run([str(LAB / "tpm.sh"), str(state)], check=True)
        self._spawn(
            "swtpm",
            ["swtpm", "socket", "--tpm2", "--terminate", "--tpmstate", f"dir={state}",
             "--ctrl", f"type=unixio,path={self._tpm_control}"],
        )  # fmt: skip
        while not self._tpm_control.exists():
            if self._children[-1].poll() is not None:
                raise GuestError(f"swtpm ended at once: {self._said('swtpm')}")
            time.sleep(0.01)
        return state / "ca.pem"

    def start(self, machine: Machine, image: Path, job: Path) -> None:
        """Start it on the disk and kernel in `image`, with the archive `job` as its second disk.

        A machine with a TPM needs `start_tpm` first.
        """
        kernel = [
            "root=/dev/nvme0n1 rw console=ttyS0 quiet loglevel=4 panic=-1 mitigations=off",
            "systemd.show_status=0 net.ifnames=0",
            # At the same addresses, code is translated once and not again for each process.
            "norandmaps init_on_alloc=0",
            "" if machine.agent else "systemd.mask=cima-agent.service",
            "" if machine.policy else "init=/usr/libexec/cima-lab-no-policy",
            machine.append,
        ]
        command = [
            "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none",
            "-accel", ACCELERATION, "-cpu", CPU, "-smp", "2", "-m", str(machine.memory),
            "-kernel", f"{image}/vmlinuz", "-append", " ".join(filter(None, kernel)),
            "-no-reboot", "-serial", f"file:{self.console}",
            "-drive", f"file={image}/root.ext4,snapshot=on,format=raw,if=none,id=root",
            "-device", "nvme,serial=lab,drive=root",
            "-drive", f"file={job},readonly=on,format=raw,if=none,id=job",
            "-device", "virtio-blk-pci,drive=job",
            "-netdev", "user,id=net,restrict=on", "-device", "virtio-net-pci,netdev=net,romfile=",
            "-device", "virtio-rng-pci", "-device", "virtio-serial-pci",
        ]  # fmt: skip
        far_ends = []
        for name in PORTS:
            self.ports[name], far = socket.socketpair()
            far_ends.append(far)
            command += ["-chardev", f"socket,id={name},fd={far.fileno()}"]
            command += ["-device", f"virtserialport,chardev={name},name={name}"]
        if machine.tpm:
            command += ["-chardev", f"socket,id=tpm,path={self._tpm_control}"]
            command += ["-tpmdev", "emulator,id=tpm,chardev=tpm", "-device", "tpm-crb,tpmdev=tpm"]
        self._spawn("qemu", command, [far.fileno() for far in far_ends])
        for far in far_ends:
            far.close()

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
        for port in self.ports.values():
            port.close()

    def _spawn(self, name: str, command: list[str], fds: list[int] | None = None) -> None:
        """Start a child with a log of its own; the kernel ends it if this process is killed."""
        with (self._directory / f"{name}.log").open("wb") as log:
            self._children.append(
                subprocess.Popen(
                    ["setpriv", "--pdeathsig", "KILL", *command],
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
