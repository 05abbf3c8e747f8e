"""A guest without a TPM, without an IMA policy and without the BPF LSM."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.vm import guest
from tests.vm.guest import IMAGE, Settings

pytestmark = pytest.mark.debian("12", "13")
"""What is said of a source that is missing has nothing to do with the kernel: two are enough."""

DEGRADED = "[tpm]\nrequired = false\n[ima]\nrequired = false\n[sensor]\nrequired = false\n"


def start() -> subprocess.CompletedProcess[str]:
    return subprocess.run(["cima-agent"], capture_output=True, text=True, timeout=120, check=False)


@contextmanager
def running_agent() -> Iterator[None]:
    """The agent, which this guest's systemd does not start."""
    with subprocess.Popen(["cima-agent"]) as process:
        try:
            guest.wait_for("the agent", Path(guest.SOCKET).exists, seconds=120)
            yield
        finally:
            process.terminate()


def lines_of(err: str, source: str) -> list[str]:
    return [line for line in err.splitlines() if line.startswith(f"ERROR {source}: ")]


def test_each_missing_source_is_one_line_that_says_what_to_do() -> None:
    refused = start()
    assert refused.returncode == 3
    (tpm,) = lines_of(refused.stderr, "tpm")
    (ima,) = lines_of(refused.stderr, "ima")
    (sensor,) = lines_of(refused.stderr, "sensor")
    assert "/dev/tpmrm0" in tpm and "tpm.tcti" in tpm and "tpm.required = false" in tpm
    assert "no IMA policy" in ima and "/etc/ima/ima-policy" in ima
    assert "lsm=" in sensor and "sensor.required = false" in sensor


def test_no_ima_at_all_is_said_too() -> None:
    guest.ok("umount", "/sys/kernel/security")
    try:
        (ima,) = lines_of(start().stderr, "ima")
    finally:
        guest.ok("mount", "-t", "securityfs", "securityfs", "/sys/kernel/security")
    assert "no IMA" in ima and "CONFIG_IMA" in ima


def test_degraded_by_setting_everything_says_what_is_missing(image: str) -> None:
    with Settings(DEGRADED), running_agent():
        row = guest.with_docker_once("/bin/true")
        shown = guest.status()
        records = guest.records(row["id"])
    assert shown["missing"] == ["ima", "sensor", "tpm"]
    assert shown["tpm"] == shown["sensor"] == shown["kernel_log"] == "missing"
    assert guest.types(records) == ["register", "config", "rootfs", "exit"]
    assert records[0]["content"]["missing"] == ["ima", "sensor", "tpm"]
    assert all(record["meta"]["missing"] == ["ima", "sensor", "tpm"] for record in records)


def test_a_setting_that_is_wrong_names_key_value_and_what_is_allowed() -> None:
    for text, words in {
        'on_agent_unavailable = "maybe"\n': ["on_agent_unavailable", "maybe", "refuse", "allow"],
        "[tpm]\npcr = 99\n": ["tpm.pcr", "99", "23"],
        "[tpm]\nregister = 1\n": ["tpm.register", "no setting", "pcr"],
        "colour = 1\n": ["colour", "no setting", "runtimes"],
    }.items():
        with Settings(text):
            refused = start()
        assert refused.returncode == 2
        assert all(word in refused.stderr for word in words), refused.stderr
        assert len(refused.stderr.splitlines()) == 1


def test_ps_and_log_work_from_what_is_stored(image: str) -> None:
    rows = guest.run("cima", "ps", "--json")
    assert json.loads(rows.out)[0]["state"] == "stopped"
    assert "is not running" in rows.err
    log = guest.run("cima", "log", json.loads(rows.out)[0]["id"], "--json")
    records = [json.loads(line) for line in log.out.splitlines()]
    assert guest.types(records) == ["register", "config", "rootfs", "exit"]
    refused = guest.run("cima", "status")
    assert refused.code == 2
    assert "systemctl start cima-agent" in refused.err
    assert IMAGE


def test_the_doctor_names_each_missing_source() -> None:
    ran = guest.run("cima", "doctor", "--json")
    assert ran.code == 2
    found = {one["check"]: one for one in json.loads(ran.out)}
    failed = {check for check, one in found.items() if one["state"] == "fail"}
    assert failed == {"ima", "sensor", "tpm", "tpm keys", "agent"}
    assert "/etc/ima/ima-policy" in found["ima"]["next"]
    assert "lsm=" in found["sensor"]["next"]
