"""Hundreds of containers, thousands of programs, an agent that is started anew.

All of it is recorded, and nothing is left behind.
"""

import os
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.vm import guest
from tests.vm.guest import STATE
from tests.vm.soak.load import Bundles, Started
from tests.vm.soak.test_kills import check_container, check_registers

pytestmark = pytest.mark.debian("13")


@dataclass(frozen=True)
class Size:
    containers: int
    at_once: int
    programs: int
    restarts: int


SMALL = Size(containers=40, at_once=10, programs=1_000, restarts=3)
FULL = Size(containers=500, at_once=50, programs=20_000, restarts=10)


@dataclass(frozen=True)
class Held:
    """What the agent, and the kernel for it, hold at one moment."""

    rss_kib: int
    files: int
    namespaces: int
    watched: int
    nested: int
    cgroups: int
    state_files: int
    manifests: int
    runtime_files: int


def held() -> Held:
    status = guest.status()
    pid = guest.agent_pid()
    files = [os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir() if path.is_symlink()]
    text = Path(f"/proc/{pid}/status").read_text()
    (rss,) = re.findall(r"VmRSS:\s+(\d+) kB", text)
    state = [path for path in STATE.rglob("*") if path.is_file()]
    manifests = sum(path.suffix == ".mtree" for path in state)
    return Held(
        rss_kib=int(rss),
        files=len(files),
        namespaces=sum(name.startswith("mnt:") for name in files),
        watched=status["sensor"]["watched"],
        nested=status["sensor"]["nested"],
        cgroups=sum(1 for path in Path("/sys/fs/cgroup").rglob("cgroup.procs")),
        state_files=len(state) - manifests,
        manifests=manifests,
        # What the launcher reads is written once the settings file is some seconds old.
        runtime_files=len({path.name for path in Path("/run/cima").iterdir()} - {"launcher"}),
    )


def test_soak(full: bool, tmp_path: Path) -> None:
    size = FULL if full else SMALL
    bundles = Bundles(tmp_path)
    wanted = {
        f"/bin/prog-{number}".encode(): bundles.install(f"prog-{number}")
        for number in range(size.programs)
    }
    script = "cat >/dev/null; for p in /bin/prog-*; do $p; done"
    # The agent that is running began before the settings had patience with this machine.
    guest.restart_agent()
    # What the first one makes stays for all.
    assert bundles.run("first").ran
    # The answer waits until no file of a service is open any more to be hashed.
    guest.records("first")
    before = held()
    runner = bundles.start("runner", script)
    guest.wait_for("the runner", lambda: guest.ps()[-1]["state"] == "running")

    begun = time.monotonic()
    started: list[Started] = []
    moments: list[tuple[int, Held]] = []
    restarts = 0
    assert runner.stdin is not None
    runner.stdin.close()
    with ThreadPoolExecutor(size.at_once) as pool:
        for first in range(0, size.containers, size.at_once):
            names = [f"box-{number}" for number in range(first, first + size.at_once)]
            started += pool.map(bundles.run, names)
            assert [(one.id, one.err) for one in started if not one.ran] == []
            moments.append((len(started), held()))
            print(f"after {len(started):4}: {moments[-1][1]}", flush=True)
            if restarts < size.restarts * len(started) // size.containers:
                restarts += 1
                if restarts % 2:
                    guest.restart_agent()
                else:
                    os.kill(guest.agent_pid(), signal.SIGKILL)
    while restarts < size.restarts:
        restarts += 1
        guest.restart_agent()
    assert runner.stdout is not None
    assert runner.stdout.read() == "ran\n" * size.programs
    assert runner.wait() == 0
    guest.wait_for("all ends", lambda: all(row["state"] == "stopped" for row in guest.ps()), 120)
    seconds = time.monotonic() - begun

    print(
        f"{size.containers} containers, {size.at_once} at once, {size.programs} programs, "
        f"{restarts} restarts: {seconds:.0f} s"
    )
    for one in started:
        check_container(one.id, {one.path: one.digest})
    check_container("runner", wanted)
    check_registers()
    status = guest.status()
    assert (status["lost"], status["unwritten_records"]) == (0, 0)
    check_nothing_is_left(before, size, moments)


def check_nothing_is_left(before: Held, size: Size, moments: list[tuple[int, Held]]) -> None:
    after = held()
    print(f"before    : {before}\nafter     : {after}")
    assert after.namespaces == before.namespaces == 0
    assert (after.watched, after.nested) == (0, 0)
    assert after.files <= before.files + 4
    assert after.cgroups <= before.cgroups
    assert after.runtime_files == before.runtime_files
    assert not [*STATE.rglob("*.new"), *STATE.rglob("*.tmp")]
    assert not [path for path in Path("/sys/fs/bpf/cima").iterdir() if path.name.endswith("-new")]
    assert len(list(Path("/sys/fs/bpf/cima").iterdir())) == 1
    later = [moment.rss_kib for count, moment in moments if count >= 100]
    assert not later or max(later) <= 1.25 * later[0], "memory grows"
    # Three files a container, one its line, and those of its own partitions' dependencies.
    assert after.state_files - before.state_files <= 4 * (size.containers + 1) + 12
    # Each program installed makes another root; who starts together is measured together.
    assert after.manifests - before.manifests <= size.containers // 2
