"""Every step of record, durable, journal, TPM, acknowledgement, times everything that can go wrong.

The agent's service, store, journal and a real TPM; the kernel is simulated, and outlives the agent.
After each fault a new agent takes over, and what it finds is checked with hashlib alone.
"""

import base64
import hashlib
import itertools
import json
import multiprocessing
import os
import random
import signal
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from cima_runc.ml.records import parse_line
from cima_runc.ml.store import Store, StoreError
from cima_runc.tpm.swtpm import software_tpm
from tests.support.faulty_agent import FAULTS, Job, Plan, run
from tests.support.simulated_agent import SimulatedKernel
from tests.support.tpm_proxy import TpmProxy, tpm_proxy

SECONDS = 60
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["tests.support.faulty_agent"])
boots = itertools.count()


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TpmProxy]:
    with software_tpm() as tcti, tpm_proxy(tmp_path_factory.mktemp("tpm"), tcti) as made:
        yield made


@dataclass
class Told:
    """What an agent's process told before its end."""

    acks: list[dict[int, tuple[int, str]]]
    """The registers at each acknowledgement."""
    done: list[str]
    refused: list[tuple[str, str]]
    """What, and why."""
    steps: Sequence[str] = ()
    end: tuple[str, str | None, int] | None = None
    """PCR 12, what the journal expects, gaps; None where the process was killed."""


class Case:
    """One boot of a host, in which agents come and go."""

    def __init__(self, root: Path, proxy: TpmProxy) -> None:
        self.kernel = SimulatedKernel()
        self.proxy = proxy
        self.job = Job(root=root, tcti=proxy.tcti, boot_id=f"boot-{next(boots)}")
        self.acks: list[dict[int, tuple[int, str]]] = []

    def agent(
        self,
        *,
        kill_at: tuple[int, bool] | None = None,
        kill_after: tuple[int, float] | None = None,
        **changes: Any,
    ) -> Told:
        """Run an agent to its end.

        It is killed when the TPM gets the command ``kill_at``, or has done it; or so many seconds
        after so many calls to the kernel (what it has done by a time depends on the machine).
        """
        job = replace(self.job, **changes)
        near, far = processes.Pipe()
        tell, told = processes.Pipe()
        process = processes.Process(target=run, args=(job, far, told))
        process.start()
        far.close()
        told.close()
        calls, seconds = kill_after or (0, 0.0)

        def on_call(call: int) -> None:
            if call == calls:
                threading.Timer(seconds, process.kill).start()

        self.kernel.serve(near, on_call)
        if kill_at is not None:
            self._kill_at(process, *kill_at)
        found = Told([], [], [])
        try:
            while tell.poll(SECONDS):
                kind, what, detail = tell.recv()
                if kind == "ack":
                    found.acks.append(detail)
                    found.done.append(what)
                elif kind == "refused":
                    found.refused.append((what, detail))
                else:
                    found.steps, found.end = what, detail
        except EOFError:
            pass
        else:
            os.kill(process.pid or 0, signal.SIGKILL)
            raise AssertionError("the agent hangs")
        process.join()
        assert process.exitcode in {0, -signal.SIGKILL}
        self.acks += found.acks
        return found

    def _kill_at(self, process: Any, number: int, afterwards: bool) -> None:
        def kill(at: int) -> str | None:
            if at == number:
                os.kill(process.pid, signal.SIGKILL)
                return "silent"
            return None

        if afterwards:
            self.proxy.after = lambda at: kill(at) and None
        else:
            self.proxy.plan = kill

    def check(self) -> None:
        """Let a new agent take over and look at everything that is left."""
        self.proxy.reset()
        told = self.agent(plan=Plan(), recover=True, tpm_seconds=10.0)
        assert not told.refused
        assert told.end is not None
        pcr, expected, _ = told.end
        assert expected is None or pcr == expected
        registers = told.acks[-1]
        for number, (count, cpcr) in registers.items():
            assert replayed(self.lines(number)) == (count, cpcr)
        for ack in self.acks:
            for number, (count, cpcr) in ack.items():
                assert replayed(self.lines(number)[:count]) == (count, cpcr), "acknowledged"
        for number, ran in self.kernel.ran.items():
            records = [parse_line(line) for line in self.lines(number)]
            assert ran <= {path_of(record.content) for record in records}
            assert not any(lost(record.content) for record in records)
        states = self.notes()
        # Runs that others of their line follow are let go of, and kept on disk.
        followed = {number for number in states if states[number] == "stopped"} - set(registers)
        assert set(states) - followed == set(registers), "nothing is left that is not accounted for"
        assert all(self.is_followed(number) for number in followed)
        self._check_journal(pcr)

    def _check_journal(self, pcr: str) -> None:
        path = self.job.root / f"boots/{self.job.boot_id}/journal.jsonl"
        entries = [json.loads(line) for line in path.read_bytes().splitlines()]
        assert entries[0]["type"] == "state"
        assert "foreign" not in {entry["type"] for entry in entries}
        assert entries[0]["status"]["foreign"]["count"] == 0
        known = {entries[0]["value"]}
        bind: dict[str, Any] = {}
        for entry in entries[1:]:
            match entry["type"]:
                case "initial":
                    assert known == {None}
                    known = {entry["value"]}
                case "bind":
                    assert entry["before"] in known
                    bind = entry
                    known = {bind[name] for name in ("before", "history", "expected")}
                case "done":
                    known = {bind["expected"]}
                case "abandoned":
                    assert entry["value"] in known
                    known = {entry["value"]}
        assert known == {pcr}

    def lines(self, number: int) -> list[bytes]:
        path = self.job.root / f"containers/{number:08d}/records.jsonl"
        return path.read_bytes().splitlines()

    def is_followed(self, number: int) -> bool:
        """Whether there is a later run of the same line."""
        own = self.note(number)
        return any(
            (other["line"], other["run"] > own["run"]) == (own["line"], True)
            for other in map(self.note, self.notes())
        )

    def note(self, number: int) -> dict[str, Any]:
        path = self.job.root / f"containers/{number:08d}/container.json"
        note: dict[str, Any] = json.loads(path.read_text())
        return note

    def notes(self) -> dict[int, str]:
        """The state of each container, as its note says."""
        return {
            int(path.parent.name): json.loads(path.read_text())["state"]
            for path in (self.job.root / "containers").glob("*/container.json")
        }


def replayed(lines: list[bytes]) -> tuple[int, str]:
    """Number and register of stored records; parse_line compares contents and digests."""
    value = bytes(32)
    for line in lines:
        value = hashlib.sha256(value + parse_line(line).digest).digest()
    return len(lines), value.hex()


def lost(content: Any) -> bool:
    """Whether it says that events are missing; not that they were bound late."""
    return content.get("type") == "lost" and content["count"] != 0


def path_of(content: Any) -> bytes | None:
    if "template_data" not in content:
        return None
    data = base64.b64decode(content["template_data"])
    digest_size = int.from_bytes(data[:4], "little")
    start = 4 + digest_size
    size = int.from_bytes(data[start : start + 4], "little")
    return data[start + 4 : start + 4 + size].rstrip(b"\0")


@pytest.fixture
def state() -> Iterator[Path]:
    """Room in memory: what a disk is slow at does not count here."""
    with tempfile.TemporaryDirectory(prefix="cima-crash-", dir="/dev/shm") as directory:
        yield Path(directory)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, proxy: TpmProxy) -> tuple[Sequence[str], int]:
    """The steps, and the number of commands to the TPM, when nothing goes wrong."""
    case = Case(tmp_path_factory.mktemp("state"), proxy)
    proxy.reset()
    told = case.agent()
    commands = proxy.count
    assert not told.refused
    assert told.done == ["take over", "start a", "commit", "start b", "stop a", "commit"]
    case.check()
    assert len(case.kernel.ran) == 2
    return told.steps, commands


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_at_every_step(
    fault: str, whole: tuple[Sequence[str], int], proxy: TpmProxy, state: Path
) -> None:
    struck = [number for number, step in enumerate(whole[0]) if step in FAULTS[fault]]
    assert struck
    for step in struck:
        case = Case(state / f"step{step}", proxy)
        proxy.reset()
        told = case.agent(plan=Plan(fault, step))
        assert (told.end is None) == (fault in {"kill", "torn"})
        for what, reason in told.refused:
            assert any(word in reason for word in ("space", "Input/output", "Read-only")), (
                what,
                reason,
            )
        if fault.startswith("clock"):
            assert not told.refused
        case.check()


TPM_FAULTS = ("retry", "failure", "silent", "lost", "closed")


@pytest.mark.parametrize("fault", [*TPM_FAULTS, "retry-on", "failure-on", "silent-on"])
def test_a_tpm_that_fails_at_every_command(
    fault: str, whole: tuple[Sequence[str], int], proxy: TpmProxy, state: Path
) -> None:
    """``-on``: it goes on failing until the agent is started anew."""
    kind, on = fault.partition("-")[::2]
    for number in range(whole[1]):
        case = Case(state / f"command{number}", proxy)
        proxy.reset()
        proxy.plan = lambda at, n=number: kind if at == n or (on and at > n) else None
        told = case.agent(tpm_seconds=0.4)
        assert told.end is not None
        if fault == "retry":
            assert not told.refused, "tpm2-tss asks again"
        for what, reason in told.refused:
            assert "TPM" in reason, (what, reason)
        case.check()


@pytest.mark.parametrize("afterwards", [False, True])
def test_a_kill_at_every_command_to_the_tpm(
    afterwards: bool, whole: tuple[Sequence[str], int], proxy: TpmProxy, state: Path
) -> None:
    for number in range(whole[1]):
        case = Case(state / f"command{number}", proxy)
        proxy.reset()
        told = case.agent(kill_at=(number, afterwards))
        assert told.end is None
        case.check()


def test_two_hundred_random_kills(proxy: TpmProxy, state: Path) -> None:
    """While containers start, run and end; hooks that got no answer ask the next agent."""
    case = Case(state / "kills", proxy)
    case.kernel.capacity = 1 << 20
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    for _ in range(200):
        after = chance.randrange(1, 40), chance.uniform(0, 0.02)
        told = case.agent(kill_after=after, endless=True)
        assert not told.refused
        assert told.end is None
    case.check()
    print(f"{case.kernel.count} containers, {sum(map(len, case.kernel.ran.values()))} files")
    assert case.kernel.count > 20
    states = case.notes()
    for number, pid in case.kernel.running.values():
        assert (states[number] == "stopped") == (pid not in case.kernel.alive)


def test_containers_may_be_admitted_while_the_tpm_fails(proxy: TpmProxy, state: Path) -> None:
    case = Case(state / "admitted", proxy)
    proxy.reset()
    proxy.plan = lambda at: "failure"
    told = case.agent(settings=(("binding", {"on_tpm_failure": "admit"}),))
    assert told.done[:2] == ["take over", "start a"]
    assert "start b" in told.done
    assert {what for what, _ in told.refused} == {"commit", "stop a"}
    case.check()
    first = [json.loads(case.lines(number)[0]) for number in case.kernel.ran]
    # The simulated kernel has no IMA.
    assert [record["content"]["missing"] for record in first] == [["ima", "tpm"]] * 2


def test_a_time_in_which_nothing_was_bound_is_written_down(proxy: TpmProxy, state: Path) -> None:
    case = Case(state / "gap", proxy)
    proxy.reset()
    proxy.plan = lambda at: "failure" if at in {5, 6} else None
    told = case.agent()
    assert told.end is not None
    assert told.refused
    gaps = told.end[2]
    case.check()
    records = [parse_line(line) for number in case.notes() for line in case.lines(number)]
    late = [one.content for one in records if one.content.get("type") == "lost"]
    assert gaps + len(late) > 0
    assert all(one["reason"] == "late: for a time the TPM failed" for one in late)


def test_a_disk_that_stays_full_costs_events_and_says_so(proxy: TpmProxy, state: Path) -> None:
    case = Case(state / "full", proxy)
    proxy.reset()
    case.kernel.capacity = 2
    told = case.agent(plan=Plan("ENOSPC-on", 25))
    assert told.refused
    proxy.reset()
    recovered = case.agent(recover=True)
    assert not recovered.refused
    for number, ran in case.kernel.ran.items():
        contents = [parse_line(line).content for line in case.lines(number)]
        missing = ran - {path_of(content) for content in contents}
        lost = sum(content["count"] for content in contents if content.get("type") == "lost")
        assert len(missing) == lost
    assert any(lost for lost in case.kernel.ran)


def test_two_agents_cannot_have_one_state_directory(tmp_path: Path) -> None:
    first = Store(tmp_path / "state")
    first.lock()
    with pytest.raises(StoreError, match="another agent uses"):
        Store(tmp_path / "state").lock()
    (tmp_path / "open").mkdir(mode=0o700)
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(StoreError, match="can be written by others"):
        Store(tmp_path / "open").lock()
