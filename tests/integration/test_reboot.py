"""After a reboot registers begin anew; what earlier boots recorded can be read and verified."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from simulated_host import BOOT_ID, SimulatedHost, simulated_host
from support.unsealed import owner_part

from cima_runc.cpcr import register
from cima_runc.ml.records import parse_line
from cima_runc.ml.store import ContainerNote, Store
from cima_runc.tpm.device import Tpm
from cima_runc.tpm.swtpm import software_tpm
from cima_runc.verifier.errors import Verdict
from cima_runc.verifier.verify import Appraisal, Expectation, verify
from tests.support.simulated_agent import SimulatedAgent, SimulatedKernel

GOOD = Appraisal(lambda *compared: [], None, b"r" * 32)


def test_a_new_boot_begins_anew_and_earlier_partitions_stay(tmp_path: Path) -> None:
    asked = os.urandom(32)
    with simulated_host(tmp_path) as host:
        number = host.start("before")
        living = host.start("cut-off")
        host.run(number, b"/bin/sh", b"content")
        host.end(number)
        raw = host.evidence("before", asked)
        wanted = Expectation(nonce=asked, ak=host.enrolled())
        bound = host.writer.expected_value
    assert bound is not None
    with software_tpm() as tcti:
        agent = booted(tmp_path / "state", tcti)
        agent.rooms.take_over()
        assert agent.registers() == {}
        assert agent.rooms.questions.ps() == []
        again = agent.start("after", 7)
        assert agent.writer.expected_value == agent.tpm.read_pcrs([12])[12]

        lines = b"".join(agent.rooms.questions.log(b'{"id":"before"}').chunks()).splitlines()
        evidence = json.loads(raw)
        measured = [(one["content"], one["digests"]) for one in map(json.loads, lines)]
        shown = [
            (one["content"], one["digests"]) for one in evidence["owner"]["runs"][0]["records"]
        ]
        assert shown == measured
        value = register.ZERO
        for line in lines:
            value = register.extend(value, parse_line(line).digest)
        assert value.hex() == evidence["owner"]["cpcr"]
        assert verify(raw, wanted, appraisal=GOOD).verdict == Verdict.TRUSTED
        assert agent.rooms.questions.log(b'{"id":"cut-off"}').length
        agent.rooms.retention.apply()
        assert {number, living, again} <= set(agent.store.registrations())
        agent.tpm.close()


@pytest.mark.parametrize("boot", ["the next boot", BOOT_ID])
def test_an_agent_that_starts_reads_each_note_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, boot: str
) -> None:
    """A host may have stored a hundred thousand; one that is damaged is named once, too."""
    with simulated_host(tmp_path) as host:
        numbers = {host.start(name) for name in ("one", "two", "three")}
        damaged = host.start("damaged")
    (tmp_path / f"state/containers/{damaged:08d}/container.json").write_text("{")
    looked: list[int] = []
    read_note = Store.read_note

    def read(store: Store, number: int) -> ContainerNote:
        looked.append(number)
        return read_note(store, number)

    monkeypatch.setattr(Store, "read_note", read)
    with software_tpm() as tcti:
        agent = booted(tmp_path / "state", tcti, boot)
        agent.rooms.take_over()
        assert len(looked) == len(set(looked))
        assert {*numbers, damaged} <= set(looked)
        agent.tpm.close()
    assert sum(f"registration {damaged} is damaged" in each for each in caplog.messages) == 1


def booted(state: Path, tcti: str, boot_id: str = "the next boot") -> SimulatedAgent:
    kernel = SimulatedKernel()

    def call(name: str, *arguments: Any) -> Any:
        return getattr(kernel, name)(*arguments)

    return SimulatedAgent(state, tcti, boot_id, call)


def test_a_run_after_a_reboot_goes_on_from_the_one_that_was_cut_off(tmp_path: Path) -> None:
    with simulated_host(tmp_path) as host:
        first = host.start("box")
        host.run(first, b"/bin/sh", b"content")
        seen = host.since(first)
        register_before = host.container(first).partition.cpcr
    with software_tpm() as tcti:
        tpm = Tpm.open(tcti)
        shutil.rmtree(tmp_path / "ima")
        (tmp_path / "event-log").unlink()
        again = SimulatedHost(tmp_path, tpm, boot_id="the next boot")
        second = again.start("box")
        part = owner_part(again.evidence("box", os.urandom(32)), None)
        assert [run["registration"] for run in part["runs"]] == [first, second]
        assert part["runs"][1]["records"][0]["content"]["previous"] == {
            "run": 1,
            "boot_id": BOOT_ID,
            "registration": first,
            "count": 3,
            "cpcr": register_before.hex(),
            "reason": None,
        }
        asked = seen.model_dump(mode="json")
        part = owner_part(again.evidence("box", os.urandom(32), since=asked), None)
        assert [(run["since"], len(run["records"])) for run in part["runs"]] == [(3, 0), (0, 2)]
        tpm.close()
