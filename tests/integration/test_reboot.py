"""After a reboot registers begin anew; what earlier boots recorded can be read and verified."""

import json
import os
from pathlib import Path
from typing import Any

from simulated_host import simulated_host

from cima_runc.cpcr import register
from cima_runc.ml.records import parse_line
from cima_runc.tpm.swtpm import software_tpm
from cima_runc.verifier.errors import Verdict
from cima_runc.verifier.verify import Appraisal, Expectation, verify
from tests.support.simulated_agent import SimulatedAgent, SimulatedKernel

GOOD = Appraisal(lambda records, reference, policy, dependencies: [], None, b"r" * 32)


def test_a_new_boot_begins_anew_and_earlier_partitions_stay(tmp_path: Path) -> None:
    asked = os.urandom(32)
    with simulated_host(tmp_path) as host:
        number = host.start("before")
        living = host.start("cut-off")
        host.run(number, b"/bin/sh", b"content")
        host.end(number)
        raw = host.evidence("before", asked)
        wanted = Expectation(nonce=asked, ak=host.enrolled())
        bound = host.ledger.journal_state.seq
    assert bound > 0
    with software_tpm() as tcti:
        agent = booted(tmp_path / "state", tcti)
        agent.rooms.take_over()
        assert agent.registers() == {}
        assert agent.rooms.questions.ps() == []
        again = agent.start("after", 7)
        assert again > living
        assert agent.writer.journal_state.seq == 1
        assert agent.writer.journal_state.value == agent.tpm.read_pcrs([12])[12]

        lines = b"".join(agent.rooms.questions.log(b'{"id":"before"}').chunks()).splitlines()
        evidence = json.loads(raw)
        measured = [(one["content"], one["digests"]) for one in map(json.loads, lines)]
        shown = [(one["content"], one["digests"]) for one in evidence["owner"]["records"]]
        assert shown == measured
        value = register.ZERO
        for line in lines:
            value = register.extend(value, parse_line(line).digest)
        assert value.hex() == evidence["owner"]["cpcr"]
        assert verify(raw, wanted, appraisal=GOOD).result.verdict == Verdict.TRUSTED
        assert agent.rooms.questions.log(b'{"id":"cut-off"}').length
        agent.rooms.retention.apply()
        assert {number, living, again} <= set(agent.store.registrations())
        agent.tpm.close()


def booted(state: Path, tcti: str) -> SimulatedAgent:
    kernel = SimulatedKernel()

    def call(name: str, *arguments: Any) -> Any:
        return getattr(kernel, name)(*arguments)

    return SimulatedAgent(state, tcti, "the next boot", call)
