"""Guests that are frozen once they have booted, and thawed in half a second.

The guest's memory is a file, and QEMU's migration passes over shared memory (`x-ignore-shared`): to
freeze is to write down the rest, to thaw is to map the file without writing to it. The TPM's state
travels with it. Everything that was thawed from one freeze has the same boot, TPM and machine id.
"""

import json
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from shlex import quote
from typing import BinaryIO

from acceleration import acceleration
from cache import CACHE, key, locked, making, prune
from guest import Guest, Storage
from job import CERTIFICATES, CHECKOUT, Conversation, Job
from machine import CPU, LAB, GuestError, Machine
from qmp import Monitor

WARM_UP = LAB / "guest-warm-up"
ORIGINS = (
    *(LAB / name for name in ("frozen.py", "guest.py", "job.py", "machine.py", "guest-warm-up")),
    *(
        CHECKOUT / "tests/vm" / name
        for name in ("warm_up.py", "covered.py", "preloaded.py", "guest.py")
    ),
)
"""What a frozen guest is made from, beside its image."""
WARM_UP_SECONDS = 1200.0
THAW_SECONDS = 60.0
MIGRATION_SECONDS = 300.0
QUIT_SECONDS = 60.0


class NotThawedError(GuestError):
    """A frozen guest did not come back as it was; another may be booted."""


@dataclass(frozen=True)
class Frozen:
    """A frozen guest in the cache."""

    directory: Path

    @property
    def _storage(self) -> Storage:
        return Storage(self.directory / "root.qcow2", "qcow2", memory=self.directory / "memory")

    @classmethod
    def existing(cls, machine: Machine, image: Path) -> "Frozen | None":
        """Return the frozen guest of this machine and image if there is one."""
        place = layer(machine, image)
        return cls(place) if place.exists() else None

    def thaw(
        self, guest: Guest, conversation: Conversation, machine: Machine, image: Path, job: Path
    ) -> None:
        """Bring it to life in `guest`, with `job`, of `JOB_DISK` bytes, as its first disk.

        Raises:
            NotThawedError: it does not answer, or is not what was frozen.
        """
        try:
            self.directory.touch()
            guest.start(machine, image, job, self._storage, frozen=True)
            monitor = guest.monitor()
            _ignore_shared_memory(monitor)
            _move(monitor, "migrate-incoming", f"cat {quote(str(self.directory / 'state'))}")
            monitor.ask("cont")
            pcr = conversation.wake(THAW_SECONDS)["pcr"]
            before = json.loads((self.directory / "guest.json").read_text())["pcr"]
            if pcr != before:
                raise GuestError(f"PCR 12 of the thawed guest is {pcr}, and was {before}")
        except (GuestError, OSError, ValueError) as error:
            raise NotThawedError(str(error)) from None

    def discard(self) -> None:
        """Remove it, so that the next one is made anew."""
        with locked(self.directory):
            shutil.rmtree(self.directory, ignore_errors=True)


def freeze(machine: Machine, image: Path, scratch: Path) -> Frozen:
    """Return the frozen guest, made in the directory `scratch` first if need be."""
    place = layer(machine, image)
    with locked(place):
        if not place.exists():
            prune(f"frozen-{machine.release}", newest=2, minutes=30)
            with making(place) as new:
                _freeze(machine, image, scratch, new)
    return Frozen(place)


def _freeze(machine: Machine, image: Path, scratch: Path, new: Path) -> None:
    disk = Storage(new / "root.qcow2", "qcow2", True, memory=new / "memory", memory_kept=True)
    create = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw"]
    guest = Guest(scratch)
    try:
        subprocess.run([*create, "-b", image / "root.ext4", disk.disk], check=True)
        certificates = str(guest.make_tpm())
        Job(WARM_UP, freeze=True).write(scratch / "job.tar", (certificates, CERTIFICATES))
        guest.start(machine, image, scratch / "job.tar", disk)
        with (new / "log").open("wb") as log:
            sinks: dict[str, BinaryIO] = {"out": log, "err": log, "files": log}
            done = Conversation(guest, sinks, WARM_UP_SECONDS).run()
        if done["status"]:
            raise GuestError("the guest cannot be warmed up:\n" + (new / "log").read_text()[-3000:])
        monitor = guest.monitor()
        monitor.ask("stop")
        monitor.ask("migrate-set-parameters", max_bandwidth=1 << 40)
        _ignore_shared_memory(monitor)
        _move(monitor, "migrate", f"cat >{quote(str(new / 'state'))}")
        monitor.ask("quit")
        guest.wait(QUIT_SECONDS)
        (new / "guest.json").write_text(json.dumps({"pcr": done["pcr"]}))
    except (OSError, subprocess.SubprocessError) as error:
        raise GuestError(f"the guest cannot be frozen: {error}") from None
    except GuestError as error:
        raise GuestError(f"{error}\n{guest.last_words()}".strip()) from None
    finally:
        guest.stop()


def _ignore_shared_memory(monitor: Monitor) -> None:
    capabilities = [{"capability": "x-ignore-shared", "state": True}]
    monitor.ask("migrate-set-capabilities", capabilities=capabilities)


def _move(monitor: Monitor, command: str, shell: str) -> None:
    monitor.ask(command, uri=f"exec:{shell}")
    monitor.wait_for_migration(MIGRATION_SECONDS)


@cache
def layer(machine: Machine, image: Path) -> Path:
    """Return where the frozen guest is, or will be."""
    versions = [
        subprocess.run([program, "--version"], stdout=subprocess.PIPE, check=True).stdout
        for program in ("qemu-system-x86_64", "swtpm")
    ]
    processor = [
        line
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith(("model name", "flags", "microcode"))
    ][:3]
    origins = [path.read_bytes() for path in ORIGINS]
    chosen = repr(machine), machine.kernel_arguments, CPU, acceleration(image)
    return CACHE / (
        f"frozen-{machine.release}-{key(image.name, *chosen, *versions, *processor, *origins)}"
    )
