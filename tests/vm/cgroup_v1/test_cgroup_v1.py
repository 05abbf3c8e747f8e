"""A host with version 1 of control groups: hybrid, as systemd has it."""

from pathlib import Path
from typing import Any

import pytest

from tests.vm import guest
from tests.vm.guest import COMMAND, IMAGE, files_of_command

COMMANDS = {
    "docker": lambda *rest: guest.docker("cima-runc", *rest),
    "podman": lambda *rest: guest.podman("cima-runc", *rest),
}


def test_it_is_hybrid() -> None:
    assert Path("/sys/fs/cgroup/memory/cgroup.procs").exists()
    assert Path("/sys/fs/cgroup/unified/cgroup.procs").exists()


def check(row: dict[str, Any]) -> None:
    records = guest.records(row["id"])
    assert {f.path: f.digest for f in guest.files(records)} == files_of_command()
    assert row["id"] in records[0]["content"]["cgroup"]


@pytest.mark.parametrize("cli", COMMANDS)
def test_a_container(image: str, cli: str) -> None:
    done = guest.run(*COMMANDS[cli]("--rm", IMAGE, "/bin/sh", "-c", COMMAND))
    assert (done.code, done.out) == (7, "the script ran\n" * 2), done.err
    row = guest.ps()[-1]
    check(row)
    guest.wait_for("its end", lambda: guest.row(row["id"])["state"] == "stopped")


@pytest.mark.parametrize("cli", COMMANDS)
def test_it_ends_with_its_last_process(image: str, cli: str) -> None:
    """On version 1 too the agent sees whether the container's cgroup is empty."""
    command = COMMANDS[cli]("-d", "--name=life", "--memory=64m", IMAGE, "/bin/sleep", "1000")
    guest.ok(*command)
    row = guest.ps()[-1]
    assert row["state"] == "running"
    guest.ok(cli, "pause", "life")
    guest.ok(cli, "unpause", "life")
    guest.restart_agent()
    assert guest.row(row["id"])["state"] == "running"
    guest.ok(cli, "rm", "-f", "life")
    guest.wait_for("its end", lambda: guest.row(row["id"])["state"] == "stopped")


def test_out_of_memory(image: str) -> None:
    limits = ["--memory=24m", "--memory-swap=24m", "--name=life"]
    for runtime in ("runc", "cima-runc"):
        command = guest.docker(runtime, *limits, IMAGE, "/bin/busybox", "tail", "/dev/zero")
        guest.check_it_is_killed_for_memory("docker", command, "life")
