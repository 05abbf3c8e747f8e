"""Whether guests run on this machine's own processor, or have theirs emulated.

That there is a /dev/kvm says little: it may be of a hypervisor that runs no kernel but its own, and
then a guest hangs or dies. So a guest is asked to reach its first program, once for each machine.
"""

import os
import platform
import selectors
import subprocess
import time
from pathlib import Path

from cache import CACHE, key, locked
from held import bound

EMULATED = "tcg,thread=single"
"""One thread for both of a guest's processors: two guests keep two cores busy. With a thread each,
Linux 7.2 was seen to panic (int3 in a BPF trampoline): one processor translated code while the
other patched it, which no real processor would let happen."""
PROCESSOR = "kvm"
REACHED = b"cima-lab: init runs"
FAILED = b"KVM internal error"
SECONDS = 20.0


def acceleration(image: Path) -> str:
    """Return QEMU's accelerator for this machine; `CIMA_VM_ACCEL` overrides what is found."""
    if wanted := os.environ.get("CIMA_VM_ACCEL"):
        return wanted
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return EMULATED
    version = subprocess.run(["qemu-system-x86_64", "--version"], capture_output=True, check=True)
    boot = Path("/proc/sys/kernel/random/boot_id").read_text()
    # Kept is what the machine can do, not what is made of it: another checkout may make another.
    answer = CACHE / f"kvm-works-{key(version.stdout, platform.release(), boot)}"
    with locked(CACHE / "kvm"):
        if not answer.exists():
            for old in CACHE.glob("kvm-*"):
                old.unlink()
            answer.write_text("yes" if _reaches_init(image) else "no")
    return PROCESSOR if answer.read_text() == "yes" else EMULATED


def _reaches_init(image: Path) -> bool:
    """Boot a guest with KVM that says so and ends."""
    command = [
        "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
        "-accel", PROCESSOR, "-cpu", "max", "-m", "512", "-serial", "stdio",
        "-kernel", f"{image}/vmlinuz", "-initrd", f"{image}/initramfs",
        "-append", "console=ttyS0 panic=-1 quiet cima.probe",
    ]  # fmt: skip
    with subprocess.Popen(
        bound(command, "KILL"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as qemu:
        assert qemu.stdout is not None
        said, deadline = b"", time.monotonic() + SECONDS
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(qemu.stdout, selectors.EVENT_READ)
                while REACHED not in said and FAILED not in said and time.monotonic() < deadline:
                    if selector.select(1):
                        data = os.read(qemu.stdout.fileno(), 1 << 16)
                        if not data:
                            break
                        said += data
        finally:
            qemu.kill()
    return REACHED in said
