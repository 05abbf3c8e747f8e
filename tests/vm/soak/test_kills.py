"""The agent is killed at random moments while containers start: nothing acknowledged is lost."""

import hashlib
import json
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vm import by_hand, guest
from tests.vm.guest import STATE
from tests.vm.soak.load import Bundles, Started, program

pytestmark = pytest.mark.debian("12")

SMALL, WHOLE = (60, 150), (200, 400)
"""How often the agent is killed, and how many programs the container that outlives it runs."""
LOG = Path("/root/agents.log")
PYTHON = "/opt/cima/bin/python3"
STARTERS = 2


class Agents:
    """Agents, one after the other, each a fresh process."""

    def __init__(self) -> None:
        guest.ok("systemctl", "stop", "cima-agent.socket", "cima-agent.service")
        self.log = LOG.open("wb")
        self._forks = subprocess.Popen(
            [PYTHON, Path(__file__).with_name("agent_forks.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            cwd="/",
        )

    def start(self) -> int:
        assert self._forks.stdin is not None and self._forks.stdout is not None
        self._forks.stdin.write("\n")
        self._forks.stdin.flush()
        return int(self._forks.stdout.readline())

    def wait_ready(self, pid: int) -> None:
        """Wait until it answers; its socket takes requests before."""
        guest.ask("ps")
        assert Path(f"/proc/{pid}").exists()

    def close(self, last: int) -> None:
        os.kill(last, signal.SIGTERM)
        guest.wait_for("the agent's end", lambda: not Path(f"/proc/{last}").exists())
        self._forks.terminate()
        self._forks.wait()
        self.log.close()
        Path(guest.SOCKET).unlink(missing_ok=True)
        guest.ok("systemctl", "start", "cima-agent.socket", "cima-agent.service", timeout=600)


@pytest.fixture
def agents() -> Iterator[Agents]:
    made = Agents()
    yield made
    print(LOG.read_text()[-20_000:])


def test_random_kills_under_a_load_of_starting_containers(
    agents: Agents, whole: bool, tmp_path: Path
) -> None:
    kills, programs = WHOLE if whole else SMALL
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    bundles = Bundles(tmp_path)
    started: list[Started] = []
    stop = threading.Event()

    def start_containers(starter: int) -> None:
        number = 0
        while not stop.is_set():
            started.append(bundles.run(f"box-{starter}-{number}"))
            number += 1

    # A container that lives through all of it, and runs programs of its own.
    for number in range(programs):
        bundles.install(f"prog-{number}")
    script = f"i=0; while [ $i -lt {programs} ]; do /bin/prog-$i; i=$((i+1)); sleep 0.2; done"
    pid = agents.start()
    agents.wait_ready(pid)
    runner = bundles.start("runner", script)
    starters = [threading.Thread(target=start_containers, args=(n,)) for n in range(STARTERS)]
    for thread in starters:
        thread.start()
    begun = time.monotonic()
    acknowledged: dict[int, list[str]] = {}
    for kill in range(kills):
        if kill % 4:
            # In the middle of its start.
            time.sleep(chance.uniform(0, 1.5))
        else:
            agents.wait_ready(pid)
            if kill % 20 == 0:
                for row in guest.ps():
                    shown = guest.stored(row["registration"])[: row["count"]]
                    acknowledged[row["registration"]] = shown
            time.sleep(chance.uniform(0, 2))
        os.kill(pid, signal.SIGKILL)
        guest.wait_for("its death", lambda: not Path(f"/proc/{pid}").exists())  # noqa: B023
        pid = agents.start()
    seconds = time.monotonic() - begun
    stop.set()
    for thread in starters:
        thread.join()
    out, _ = runner.communicate(timeout=1200)
    assert out == "ran\n" * programs
    guest.wait_for("all ends", lambda: all(row["state"] == "stopped" for row in guest.ps()), 120)

    ran = [one for one in started if one.ran]
    refused = [one for one in started if not one.ran]
    print(
        f"seed {seed}: {kills} kills in {seconds:.0f} s, {len(ran)} containers ran, "
        f"{len(refused)} were refused"
    )
    assert ran
    for one in refused:
        assert one.status != 0
        assert "cima-runc: " in one.err, f"no reason: {one.err}"
    for one in ran:
        assert one.status == 0
        check_container(one.id, {one.path: one.digest})
    shared = {
        f"/bin/{name}".encode(): hashlib.sha256(program(name)).hexdigest()
        for name in (f"prog-{number}" for number in range(programs))
    }
    check_container("runner", shared)
    # By registration, and on the disk: one that a kill cut off is followed by another run of its
    # line, after which an agent that starts does not take it in.
    for registration, lines in acknowledged.items():
        assert guest.stored(registration)[: len(lines)] == lines
    check_registers()
    status = guest.status()
    assert status["lost"] == 0
    assert status["foreign_extends"] == 0
    agents.close(pid)


def lines_of(container_id: str) -> list[bytes]:
    return guest.ask("log", json.dumps({"id": container_id}).encode()).splitlines()


def check_container(container_id: str, programs: dict[bytes, str]) -> None:
    """All its programs are recorded with their digests, from its registration to its end."""
    records = [json.loads(line) for line in lines_of(container_id)]
    types = guest.types(records)
    assert types[:3] == ["register", "config", "rootfs"]
    assert types[-1] == "exit"
    assert not {"lost", "violation"} & set(types)
    found = {file.path: file.digest for file in guest.files(records)}
    assert programs.items() <= found.items()


def check_registers() -> None:
    """Every partition replays to its register, and the journal to PCR 12, without our code."""
    for row in guest.ps():
        lines = guest.stored(row["registration"])
        assert (by_hand.register(lines), len(lines)) == (row["cpcr"], row["count"])
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    journal = (STATE / "boots" / boot / "journal.jsonl").read_text().splitlines()
    assert by_hand.binding(journal) == by_hand.pcr(12)
