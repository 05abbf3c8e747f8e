#!/opt/cima-test/bin/python
"""The part of sensor.py that runs in a guest, with the arguments ROUNDS COUNT.

Prints a line for each measurement: what was done, the state, what was measured and how much that
is: `rate`, how often a second, or `in_programs`, how many nanoseconds of each time the kernel spent
in the sensor's programs. That is measured in a round of its own: reading the clock costs, too.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, "/opt/cima-test")

from cima_runc.sensor.loader import Rights, Sensor
from tests.vm.test_sensor import drain, program

PROGRAM = "known"
WRITTEN = "written"
WORK = (
    ("known", "execute", PROGRAM, 1),
    ("map", "map", PROGRAM, 5),
    ("open", "open", PROGRAM, 20),
    ("write", "write", WRITTEN, 20),
    ("fork", "fork", PROGRAM, 2),
)
"""What is measured beside new files: its name, what is done, with which file, and how many times as
often: what takes little time is done more often."""
IMAGE_FILES = 10_000
"""Digests that an image's list has besides those that are executed."""


class Container:
    """Where programs are executed: runc's, on an overlay, with the spawner as its only program."""

    def __init__(self, directory: Path) -> None:
        self._bundle = directory
        self.root = directory / "merged"
        for name in ("lower", "upper", "work", "merged"):
            (directory / name).mkdir(parents=True)
        shutil.copy("/root/spawn", directory / "lower/spawn")
        install(directory / "lower" / PROGRAM, b"")
        # Written to once, so that it is the container's own copy.
        (directory / "upper" / WRITTEN).write_bytes(b"data")
        options = ",".join(f"{n}dir={directory / n}" for n in ("lower", "upper", "work"))
        command = ["mount", "-t", "overlay", "overlay", "-o", options, str(self.root)]
        subprocess.run(command, check=True)
        subprocess.run(["runc", "spec", "--bundle", str(directory)], check=True)

    def do(
        self, what: str, count: int, files: list[str], watch: Callable[[int], None]
    ) -> tuple[float, float]:
        """Do something with files; ``watch`` gets the pid of the container before it starts.

        Returns how often a second, and nanoseconds of each time in the sensor's programs.
        """
        config = json.loads((self._bundle / "config.json").read_text())
        config["process"] |= {"terminal": False, "args": ["/spawn", what, str(count), *files]}
        config["root"] = {"path": str(self.root), "readonly": False}
        (self._bundle / "config.json").write_text(json.dumps(config))
        read, write = os.pipe()
        create = ["runc", "create", "--bundle", str(self._bundle), "bench"]
        subprocess.run(create, check=True, stdin=subprocess.DEVNULL, stdout=write)
        os.close(write)
        state = json.loads(subprocess.check_output(["runc", "state", "bench"]))
        watch(state["pid"])
        before = nanoseconds_in_programs()
        subprocess.run(["runc", "start", "bench"], check=True)
        with open(read, "rb") as out:
            nanoseconds = int(out.read())
        in_programs = nanoseconds_in_programs() - before
        subprocess.run(["runc", "delete", "-f", "bench"], check=True)
        return count / (nanoseconds / 1e9), in_programs / count

    def digests(self) -> list[bytes]:
        """As an image's list would have them: of its files, and of many more."""
        files = [path for path in self.root.iterdir() if path.is_file()]
        known = [hashlib.sha256(path.read_bytes()).digest() for path in files]
        return known + [os.urandom(32) for _ in range(IMAGE_FILES)]


class Watch:
    """Watches one container after the other, and may hold it to a list of digests."""

    def __init__(
        self, sensor: Sensor, root: Path, digests: Callable[[], list[bytes]] | None = None
    ) -> None:
        self._sensor = sensor
        device = root.stat().st_dev
        self._rights = Rights(root_device=os.major(device) << 20 | os.minor(device))
        self._digests = digests
        self._watched: int | None = None

    def __call__(self, pid: int) -> None:
        if self._watched is not None:
            # The kernel gives the number of its mount namespace to the next one.
            self._sensor.unwatch(self._watched)
        allowlist = None if self._digests is None else self._sensor.allowlist(self._digests())
        mntns = os.stat(f"/proc/{pid}/ns/mnt").st_ino
        self._sensor.watch(mntns, pid, 1, allowlist, self._rights)
        self._watched = pid
        if allowlist is not None:
            os.close(allowlist)


def nanoseconds_in_programs() -> int:
    """What the kernel has spent in this process's BPF programs, and in IMA on their behalf."""
    spent = 0
    for path in Path("/proc/self/fdinfo").iterdir():
        if path.exists():  # not the directory's own descriptor
            spent += sum(map(int, re.findall(r"^run_time_ns:\s+(\d+)$", path.read_text(), re.M)))
    return spent


def install(path: Path, payload: bytes) -> None:
    path.write_bytes(program(payload.ljust(16384, b"\0")))
    path.chmod(0o755)


STATISTICS = Path("/proc/sys/kernel/bpf_stats_enabled")


def measure_all(rounds: int, count: int) -> None:
    """Measure, and print a line for each measurement."""
    container = Container(Path("/root/bench"))
    number = 0
    is_timed = True

    def measure(state: str, watch: Callable[[int], None]) -> None:
        nonlocal number
        names = []
        for _ in range(count):
            number += 1
            names.append(f"/new{number}")
            install(container.root / names[-1][1:], str(number).encode())
        work = [(kind, what, [f"/{file}"], count * times) for kind, what, file, times in WORK]
        for kind, does, files, often in (*work, ("new", "execute", names, count)):
            rate, in_programs = container.do(does, often, files, watch)
            what, found = ("rate", rate) if is_timed else ("in_programs", in_programs)
            print(f"{kind}\t{state}\t{what}\t{found}", flush=True)
        for name in names:
            (container.root / name[1:]).unlink()

    def nobody(pid: int) -> None:
        pass

    # Before the first round counts, what a guest does once it has booted is over.
    for _ in range(1 + rounds):
        measure("IMA off", nobody)
    Path("/sys/kernel/security/ima/policy").write_text("/root/ima-policy")
    for each in range(rounds + 1):
        is_timed = each < rounds
        if is_timed:
            measure("IMA", nobody)
        else:
            STATISTICS.write_text("1")
        with Sensor.load() as sensor:
            measure("IMA and sensor, unwatched", nobody)
            measure("IMA and sensor", Watch(sensor, container.root))
            check_events(sensor, count)
        with Sensor.load() as sensor:
            measure("IMA and sensor, enforcing", Watch(sensor, container.root, container.digests))
            check_events(sensor, count)


def check_events(sensor: Sensor, count: int) -> None:
    """Each new program once, beside the spawner and the known one."""
    events = drain(sensor)
    new = [event for event in events if event.path.startswith(b"/new")]
    assert len(new) == count, f"{len(new)} events of {count} new files"
    assert not any(event.denied for event in events)
    assert sensor.lost() == {}


if __name__ == "__main__":
    measure_all(*map(int, sys.argv[1:]))
