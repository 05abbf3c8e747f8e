"""install.sh, run again on a host with containers that run."""

import hashlib
from pathlib import Path

import pytest

from tests.vm import guest
from tests.vm.guest import IMAGE

INSTALL = Path("/opt/cima-test/examples/install.sh")
WHEELS = Path("/opt/cima-test/wheel")


@pytest.mark.debian("12")
def test_an_upgrade_loses_nothing_of_a_container_that_runs(image: str) -> None:
    command = guest.docker("cima-runc", "-d", IMAGE, "/bin/sh", "-c", guest.NEW_PROGRAM_EACH_SECOND)
    container_id = guest.ok(*command).strip()
    before = guest.agent_pid()
    [wheel] = WHEELS.iterdir()

    done = guest.ok("env", "PIP_NO_INDEX=1", INSTALL, wheel, timeout=1200)

    assert "Containers that run are measured on." in done
    assert guest.agent_pid() not in (before, 0)
    guest.ok("docker", "exec", container_id, "/bin/sh", "-c", "echo >/stop")
    assert guest.ok("docker", "wait", container_id) == "0\n"
    count = int(guest.ok("docker", "logs", container_id))
    guest.ok("docker", "rm", container_id)

    records = guest.records(container_id)
    busybox = Path("/bin/busybox").read_bytes()
    ran = {b"/tool%d" % n: hashlib.sha256(busybox + b"%d\n" % n).hexdigest() for n in range(count)}
    found = {file.path: file.digest for file in guest.files(records) if b"/tool" in file.path}
    assert found == ran
    assert not {"lost", "violation"} & set(guest.types(records))
    status = guest.status()
    assert status["pcr_value"] == status["expected_value"]
    assert not status["trouble"]
    # The new launcher and hooks serve.
    row = guest.with_docker_once()
    files = {file.path: file.digest for file in guest.files(guest.records(row["id"]))}
    assert files == guest.files_of_command()
