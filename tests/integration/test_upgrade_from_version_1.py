"""An agent takes over from one of version 1, in place, under a container that runs.

What that agent had left on disk is recorded (tests/fixtures/version-1); the TPM is real, the
container's process is simulated.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cima_runc.agent.process import ContainerProcess
from cima_runc.evidence.owner import parse_private
from cima_runc.evidence.request import Request
from cima_runc.ml import contents
from cima_runc.ml.store import ContainerNote
from cima_runc.tpm.device import Tpm
from cima_runc.tpm.structures import parse_public
from cima_runc.tpm.swtpm import software_tpm
from cima_runc.verifier.enrolled import EnrolledAk, enrolled_ak_file, parse_enrolled_ak
from cima_runc.verifier.errors import Verdict
from cima_runc.verifier.expectation import Expectation
from cima_runc.verifier.policy import parse_policy
from cima_runc.verifier.result import Result
from cima_runc.verifier.verify import Appraisal, verify
from tests.support.evidence_by_hand import verify as by_hand
from tests.support.simulated_agent import SimulatedAgent, SimulatedKernel, SimulatedProcess

RECORDED = Path(__file__).resolve().parents[1] / "fixtures/version-1"
OWNER_KEY = (RECORDED / "owner.key").read_bytes()
POLICY = b"allow_missing = ['ima', 'sensor']\n"
"""The recorded host had neither."""
GOOD = Appraisal(lambda *compared: [], None, b"r" * 32)


class Agent(SimulatedAgent):
    """An agent that finds the recorded container's process as it was."""

    kept: ContainerNote

    def _examine(
        self, pid: int, container_id: str, cgroup: str | None, *, needs_cgroup: bool = True
    ) -> ContainerProcess:
        found = super()._examine(pid, container_id, cgroup, needs_cgroup=needs_cgroup)
        if pid != self.kept.pid:
            return found
        assert isinstance(found, SimulatedProcess)
        more = {"start_ticks": self.kept.start_ticks, "namespaces": {"mnt": self.kept.mntns}}
        return SimulatedProcess(**{**found.__dict__, **more})


@dataclass
class Upgraded:
    """A host on which the agent of version 1 has been killed."""

    state: Path
    tcti: str
    kernel: SimulatedKernel
    kept: ContainerNote

    @property
    def journal(self) -> Path:
        return self.state / "boots" / self.kept.boot_id / "journal.jsonl"

    def agent(self) -> Agent:
        def call(name: str, *arguments: Any) -> Any:
            return getattr(self.kernel, name)(*arguments)

        agent = Agent(self.state, self.tcti, self.kept.boot_id, call)
        agent.rooms.take_over()
        return agent

    def kill(self) -> None:
        """End the agent: what it has left on disk is no longer locked."""
        left = self.state
        self.state = left.with_name(f"{left.name}+")
        shutil.copytree(left, self.state)
        self.state.chmod(0o700)

    def lines(self) -> list[bytes]:
        file = self.state / "containers" / f"{self.kept.registration}" / "records.jsonl"
        return file.read_bytes().splitlines()


@pytest.fixture
def upgraded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Upgraded]:
    state = tmp_path / "state"
    shutil.copytree(RECORDED / "state", state)
    state.chmod(0o700)
    notes = [
        ContainerNote.model_validate_json(file.read_bytes())
        for file in state.glob("containers/*/container.json")
    ]
    (kept,) = (note for note in notes if note.id == "kept")
    monkeypatch.setattr(Agent, "kept", kept, raising=False)
    kernel = SimulatedKernel()
    kernel.start(kept.pid)
    # The sensor has watched it all the while.
    kernel.watch(kept.registration)
    with software_tpm() as tcti:
        tpm = Tpm.open(tcti)
        for line in (state / "boots" / kept.boot_id / "journal.jsonl").read_text().splitlines():
            if (entry := json.loads(line))["type"] == "bind":
                bound = entry["seq"].to_bytes(8, "big") + bytes.fromhex(entry["root"])
                tpm.extend(12, hashlib.sha256(b"cima-bind-v1\0" + bound).digest())
                assert tpm.read_pcrs([12])[12].hex() == entry["expected"]
        tpm.close()
        yield Upgraded(state, tcti, kernel, kept)


def evidence(agent: Agent, nonce: bytes) -> bytes:
    request = Request(container="kept", nonce=nonce, host="none", boot_log=False, since=None)
    waiting = agent.rooms.attester.ask(request, source=None)
    agent.rooms.attester.serve()
    return agent.lobby.assembly.evidence(waiting.result())


def test_a_container_that_runs_is_not_lost(upgraded: Upgraded) -> None:
    number, before = upgraded.kept.registration, upgraded.lines()
    upgraded.kernel.execute(number, b"/bin/between")
    agent = upgraded.agent()
    upgraded.kernel.execute(number, b"/bin/after")
    agent.rooms.commit(bind=True)

    # Its partition goes on: nothing that was there is another, and it has its place in a line.
    lines = upgraded.lines()
    assert lines[: len(before)] == before
    container = agent.writer.get(number)
    assert container is not None
    assert (container.note.state, container.note.run) == ("running", 1)
    new = [json.loads(line)["content"] for line in lines[len(before) :]]
    (adopted,) = (content for content in new if content.get("type") == "adopted")
    said = (adopted["line"], adopted["run"], adopted["previous"])
    assert said == (container.note.line, 1, "lost")
    assert upgraded.kernel.ran[number] == {b"/bin/between", b"/bin/after"}
    measured = {one.path for one in files(agent, number)}
    assert measured == upgraded.kernel.ran[number]
    # The PCR is what it was bound to, by the old agent and then by this one.
    assert agent.writer.expected_value == agent.tpm.read_pcrs([12])[12]
    entries = [json.loads(line) for line in upgraded.journal.read_bytes().splitlines()]
    assert entries[0]["version"] == 2 and "seq" not in upgraded.journal.read_text()

    # Evidence of it is of version 2, from its first bind on, and so says an independent verifier.
    nonce = os.urandom(32)
    raw = evidence(agent, nonce)
    assert json.loads(raw)["version"] == 2
    status = json.loads(raw)["binding"]["status"]
    assert status["foreign"]["count"] == status["gaps"]["count"] == 0, "nobody else was there"
    assert status["initial"] == "00" * 32
    public = parse_public(agent.rooms.attester.attestation_key().public)
    ak = parse_enrolled_ak(enrolled_ak_file(public))
    result = verdict(raw, nonce, ak)
    # What its line was before is on nobody's record; who can live with that says so.
    assert result.verdict == Verdict.UNTRUSTED
    assert [one.rule for one in result.findings if one.severity == "fail"] == ["runs.lost"]
    assert verdict(raw, nonce, ak, b"allow_restarts = true\n").verdict == Verdict.TRUSTED
    hand = by_hand(raw, nonce, public.name, "kept", private_pem=OWNER_KEY)
    assert len(hand["records"]) == len(lines)
    agent.tpm.close()


def verdict(raw: bytes, nonce: bytes, ak: EnrolledAk, policy: bytes = b"") -> Result:
    key, rules = parse_private(OWNER_KEY), parse_policy(POLICY + policy)
    return verify(raw, Expectation(nonce, ak, "kept", key, policy=rules), appraisal=GOOD)


def files(agent: Agent, number: int) -> list[contents.File]:
    found = map(contents.read, agent.store.records(number))
    return [one for one in found if isinstance(one, contents.File)]


def test_it_is_adopted_once_and_its_line_goes_on(upgraded: Upgraded) -> None:
    number = upgraded.kept.registration
    for _ in range(2):
        agent = upgraded.agent()
        agent.rooms.commit(bind=True)
        adopted = [line for line in upgraded.lines() if b'"adopted"' in line]
        assert len(adopted) == 1
        agent.tpm.close()
        upgraded.kill()
    agent = upgraded.agent()
    upgraded.kernel.exit(upgraded.kept.pid)
    agent.rooms.commit(bind=True)
    container = agent.writer.get(number)
    assert container is not None
    assert agent.writer.next_run(bytes.fromhex(container.note.line or "")).run == 2
    agent.tpm.close()


def test_one_that_ended_before_is_read_as_it_was(upgraded: Upgraded) -> None:
    agent = upgraded.agent()
    shown = b"".join(agent.rooms.questions.log(b'{"id":"ended"}').chunks())
    types = [json.loads(line)["content"].get("type") for line in shown.splitlines()]
    assert types == ["register", "config", "rootfs", "exit"]
    agent.tpm.close()


def test_one_that_ended_while_no_agent_ran(upgraded: Upgraded) -> None:
    upgraded.kernel.exit(upgraded.kept.pid)
    agent = upgraded.agent()
    container = agent.writer.get(upgraded.kept.registration)
    assert container is not None and container.note.state == "stopped"
    assert b'"exit"' in upgraded.lines()[-1]
    agent.tpm.close()
