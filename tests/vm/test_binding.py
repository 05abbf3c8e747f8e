"""cPCRs and PCR 12, recomputed without our code."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.vm import by_hand, guest
from tests.vm.guest import STATE


def journal() -> list[str]:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return (STATE / "boots" / boot / "journal.jsonl").read_text().splitlines()


def printed_lines(container_id: str) -> list[str]:
    return guest.ok("cima", "log", container_id, "--json").splitlines()


def test_registers_and_the_pcr_are_what_the_records_add_up_to(image: str) -> None:
    for _ in range(2):
        guest.with_docker_once()
    rows = guest.ps()
    assert len(rows) >= 2
    for row in rows:
        if row["state"] != "unmeasured":
            lines = guest.stored(row["registration"])
            assert by_hand.register(lines) == row["cpcr"]
            assert len(lines) == row["count"]

    def unbroken() -> tuple[dict[str, Any], str] | None:
        """The agent's word and the TPM's, with no bind of a late event in between."""
        before = journal()
        both = guest.status(), by_hand.pcr(12)
        return both if journal() == before else None

    status, value = guest.wait_for("a moment without a bind", unbroken)
    assert by_hand.binding(journal()) == value
    assert status["pcr_value"] == status["expected_value"] == value
    assert by_hand.bound(status["bind"]) == value


def test_commands_print_what_the_agent_says(image: str) -> None:
    guest.run_once()
    printed, said = printed_and_said("ps", guest.ps)
    # With the names that people know a container by beside what the agent says.
    assert printed == [shown | row for shown, row in zip(printed, said, strict=True)]
    wanted = {"pcr", "pcr_value", "expected_value", "bind", "initial_value", "tpm", "sensor"}

    def status() -> dict[str, Any]:
        found = guest.status()
        return {key: found[key] for key in wanted}

    printed, said = printed_and_said("status", status)
    assert wanted | {"lost"} <= printed.keys()
    assert {key: printed[key] for key in wanted} == said


def printed_and_said(command: str, said: Callable[[], Any]) -> tuple[Any, Any]:
    """What a command prints at a time when the agent says the same before and after it.

    A host's services go on meanwhile, and what they run is measured as well.
    """

    def tried() -> tuple[Any, Any] | None:
        before = said()
        printed = json.loads(guest.ok("cima", command, "--json"))
        return (printed, before) if said() == before else None

    both: tuple[Any, Any] = guest.wait_for("a host that stands still", tried)
    return both


def test_log_prints_the_records_as_they_are_stored(image: str) -> None:
    row = guest.run_once()
    assert printed_lines(row["id"]) == guest.stored(row["registration"])


def test_a_flipped_byte_in_a_record_disagrees(image: str) -> None:
    row = guest.run_once()
    lines = printed_lines(row["id"])
    at = next(i for i, line in enumerate(lines) if '"ima_template"' in line)
    record = json.loads(lines[at])
    digest = record["digests"][0]["digest"]
    record["digests"][0]["digest"] = ("0" if digest[0] != "0" else "1") + digest[1:]
    changed = [*lines[:at], json.dumps(record), *lines[at + 1 :]]
    assert by_hand.register(lines) == row["cpcr"]
    assert by_hand.register(changed) != row["cpcr"]


def test_reading_does_not_extend(image: str) -> None:
    row = guest.run_once()
    before = by_hand.pcr(12)
    guest.status()
    guest.records(row["id"])
    guest.ps()
    assert by_hand.pcr(12) == before


def test_both_pcrs_of_the_kernels_log_replay_to_the_tpm(image: str) -> None:
    log = guest.status()["kernel_log"]
    assert log["pcr10"]["matches_tpm"] is True
    assert log["pcr11"]["matches_tpm"] is True
    assert log["pcr11"]["lines"] > 0


def test_somebody_else_extending_the_pcr_is_seen_and_binding_goes_on(image: str) -> None:
    before = guest.status()
    guest.ok("tpm2_pcrextend", "12:sha256=" + "ab" * 32)
    seen = guest.status()
    assert seen["foreign_extends"] == before["foreign_extends"] + 1
    entry = json.loads(journal()[-1])
    assert (entry["type"], entry["kind"]) == ("foreign", "changed")
    assert entry["value"] == by_hand.pcr(12) != before["pcr_value"]
    guest.run_once()
    after = guest.status()
    assert after["pcr_value"] == after["expected_value"] == by_hand.pcr(12)
    binds = [json.loads(line) for line in journal() if '"bind"' in line]
    assert any(bind["before"] == entry["value"] for bind in binds)


def test_only_root_may_ask(image: str) -> None:
    asked = subprocess.run(
        ["setpriv", "--reuid=65534", "--clear-groups", "cima", "status"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert asked.returncode != 0
    assert not asked.stdout
    assert "Permission denied" in asked.stderr
