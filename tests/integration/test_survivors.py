"""An agent that starts where a container's first process has ended and others of it live on."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cima_runc.agent.candidate import Candidate
from cima_runc.agent.host_services import Look
from cima_runc.agent.process import examine
from cima_runc.ml.contents import NO_ENGINE
from cima_runc.runtime.hook_state import HookState
from cima_runc.tpm.swtpm import software_tpm
from tests.support.simulated_agent import NO_ROOTFS, SimulatedAgent, SimulatedKernel

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="takes root")


def calls_to(kernel: SimulatedKernel) -> Callable[..., Any]:
    """What an agent calls its sensor by."""

    def call(name: str, *arguments: Any) -> Any:
        return getattr(kernel, name)(*arguments)

    return call


@contextmanager
def leaving_behind(command: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A container's first process, which ends with its stdin, and another that runs a command."""
    script = f"{command} >/dev/null & echo $!; read wait"
    with subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as first:
        assert first.stdout is not None
        yield first, int(first.stdout.readline())


def test_it_goes_on_until_the_last_of_them_has_ended(tmp_path: Path) -> None:
    """As with --pid=host: they run on, so the container has not ended, and is watched on."""
    kernel = SimulatedKernel()
    call = calls_to(kernel)
    with software_tpm() as tcti, leaving_behind("sleep 60") as (first, other):
        assert first.stdin is not None
        agent = SimulatedAgent(tmp_path, tcti, "boot", call)
        agent.rooms.take_over()
        kernel.start(first.pid)
        process = examine(first.pid, "box", None, needs_cgroup=False)
        state = HookState(id="box", bundle="/bundles/box", pid=first.pid)
        config = {"process": {"args": ["/bin/sh"]}}
        look = Look(error="not looked for")
        candidate = Candidate(state, config, process, NO_ROOTFS, look, NO_ENGINE)
        agent.rooms.registration.register(candidate)
        number = candidate_number(agent)
        kernel.marks[other] = number
        agent.tpm.close()
        os.close(agent.store._lock)

        first.stdin.close()
        first.wait()
        kernel.exit(first.pid)
        later = SimulatedAgent(tmp_path, tcti, "boot", call)
        later.rooms.take_over()
        assert candidate_number(later) == number
        assert number in later.rooms.lifecycle.held_registrations
        assert not later.rooms.lifecycle.process_ended(number)
        assert number in kernel.rows  # watched
        # What is behind one that was left behind is not what the container relies on.
        held = later.writer.get(number)
        assert held is not None
        held.note = held.note.model_copy(update={"dependencies": 5})
        assert later.rooms.lifecycle.dependents() == {}
        os.kill(other, signal.SIGKILL)
        while not later.rooms.lifecycle.process_ended(number):
            pass
        assert later.writer.live("box", "/bundles/box") is None
        later.tpm.close()


def test_who_deletes_it_has_it_recorded_that_some_of_it_go_on(tmp_path: Path) -> None:
    """One that has left the container's mount namespace and its cgroup is known by its mark."""
    kernel = SimulatedKernel()
    leaves = leaving_behind("unshare --mount sleep 60")
    with software_tpm() as tcti, leaves as (first, other):
        assert first.stdin is not None
        while os.readlink(f"/proc/{other}/ns/mnt") == os.readlink(f"/proc/{first.pid}/ns/mnt"):
            time.sleep(0.01)
        agent = SimulatedAgent(tmp_path, tcti, "boot", calls_to(kernel))
        agent.rooms.take_over()
        lost = []
        for name in ("leaves-one", "leaves-none"):
            process = examine(first.pid, name, None, needs_cgroup=False)
            if name == "leaves-none":
                process = replace(process, namespaces={"mnt": 1})
            state = HookState(id=name, bundle="/bundles/box", pid=first.pid)
            look = Look(error="not looked for")
            candidate = Candidate(state, {"process": {}}, process, NO_ROOTFS, look, NO_ENGINE)
            agent.rooms.registration.register(candidate)
            container = agent.writer.live(name, "/bundles/box")
            assert container is not None
            lost.append(container.note.registration)
        kernel.marks[other] = lost[0]
        first.stdin.close()
        first.wait()
        for name in ("leaves-one", "leaves-none"):
            body = json.dumps({"id": name, "bundle": "/bundles/box"}).encode()
            agent.rooms.lifecycle.poststop(body)
        types = [[one.content.get("type") for one in agent.store.records(each)] for each in lost]
        assert types[0][-2:] == ["lost", "exit"] and "lost" not in types[1]
        assert types[1][-1] == "exit"
        os.kill(other, signal.SIGKILL)
        agent.tpm.close()


def candidate_number(agent: SimulatedAgent) -> int:
    container = agent.writer.live("box", "/bundles/box")
    assert container is not None
    return container.note.registration
