"""Thousands of mount namespaces, entered by descriptor, and tasks made in every way: where the host
enforces, nothing unknown runs, also while the agent is restarted."""

import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vm import guest
from tests.vm.attacks import container

pytestmark = pytest.mark.debian()  # every attack takes minutes a release: --everything

NAMESPACES, TASKS = 10_000, 2_500
RESTARTS = 3
REFERENCE = Path("/etc/cima/references/attacks.json")


@pytest.fixture(scope="module", autouse=True)
def enforced() -> Iterator[None]:
    container.make_image()
    REFERENCE.parent.mkdir(parents=True, exist_ok=True)
    REFERENCE.write_bytes(container.REFERENCE.read_bytes())
    with guest.Settings("[enforcement]\nenforce = true\n"):
        guest.restart_agent()
        yield
    REFERENCE.unlink()
    guest.restart_agent()


@pytest.mark.parametrize("seed", [1, 2])
def test_nothing_unknown_runs_however_its_task_was_made(seed: int) -> None:
    words = ["namespace_storm", NAMESPACES, NAMESPACES // TASKS, seed]
    command = ["/bin/attacks", *map(str, words)]
    ended = threading.Event()
    restarted = []

    def restart() -> None:
        while not ended.wait(5) and len(restarted) < RESTARTS:
            guest.restart_agent()
            restarted.append(1)

    beside = threading.Thread(target=restart)
    with container.bundle(command, "privileged", None) as (directory, name):
        beside.start()
        said = container.run(directory, name, seconds=540)
        ended.set()
        beside.join()
    assert said.rstrip().endswith("done"), said[-2000:]
    assert "ran: evil" not in said
    made = re.search(r"^made: (\d+) of", said, re.M)
    assert made and int(made[1]) > TASKS / 4, said[-200:]
    assert restarted
    found = guest.records(name)
    assert guest.contents(found, "lost") == []
    denied = [
        content
        for content in guest.contents(found, "violation")
        if content["kind"] == "denied" and bytes.fromhex(content["path_hex"]) == b"/tmp/evil"
    ]
    assert denied
