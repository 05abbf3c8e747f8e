"""What a guest is made of: the machine that QEMU shows it, and the image that it boots."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

LAB = Path(__file__).resolve().parent
CPU = "max,la57=off,avx=off,avx2=off"
"""Five-level page tables and AVX only cost time where they are emulated."""
JOB_DISK = 128 << 20
"""Bytes of the disk with the job; a frozen guest has seen how large it is."""


class GuestError(Exception):
    """The guest could not do its part; the message says what happened."""


@dataclass(frozen=True)
class Machine:
    """What a guest is started with.

    `memory` is in MiB, `append` holds more kernel arguments. Without `agent` the unit cima-agent is
    masked, without `policy` the kernel gets no IMA policy, without `tpm` there is no TPM.
    With `packages` nothing of cima-runc is installed: /root/packages holds what installs it. With
    `reboots`, and with `packages`, the guest may restart.
    `kernel` is `release` for the release's own, or `backports` for the newest that there is for it.
    `more` are names of Debian packages that other guests are without. With `instructions` its one
    processor is emulated, and its clock goes on by a nanosecond with each instruction: what it
    measures does not depend on what else the host does.
    """

    release: str
    kernel: str = "release"
    agent: bool = True
    policy: bool = True
    tpm: bool = True
    memory: int = 3072
    append: str = ""
    packages: bool = False
    reboots: bool = False
    more: tuple[str, ...] = ()
    instructions: bool = False

    @property
    def is_default(self) -> bool:
        """Whether nothing but the release was chosen."""
        return self == Machine(self.release)

    @property
    def kernel_arguments(self) -> str:
        """The kernel's command line."""
        words = [
            "rw console=ttyS0 quiet loglevel=4 panic=-1 mitigations=off",
            # Under load the emulated timer's ticks come too late for the kernel's check of it.
            "no_timer_check",
            "systemd.show_status=0 net.ifnames=0",
            # At the same addresses, code is translated once and not again for each process.
            "norandmaps init_on_alloc=0",
            "" if self.agent else "systemd.mask=cima-agent.service",
            "" if self.policy else "init=/usr/libexec/cima-lab-no-policy",
            self.append,
        ]
        return " ".join(filter(None, words))


def image(machine: Machine) -> Path:
    """Return the directory with the guest's disk and kernel, made first if need be."""
    what = "packages" if machine.packages else "installed"
    command = [str(LAB / "image.sh"), machine.release, machine.kernel, what, *machine.more]
    made = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if made.returncode:
        raise GuestError(f"the Debian {machine.release} guest could not be built")
    return Path(made.stdout.strip())
