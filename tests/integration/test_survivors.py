"""An agent that starts where a container's first process has ended and others of it live on."""

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from cima_runc.agent.candidate import Candidate
from cima_runc.agent.dependencies import Look
from cima_runc.agent.process import examine
from cima_runc.ml.contents import NO_ENGINE
from cima_runc.runtime.hook_state import HookState
from cima_runc.tpm.swtpm import software_tpm
from tests.support.simulated_agent import NO_ROOTFS, SimulatedAgent, SimulatedKernel

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="takes root")


def test_it_goes_on_until_the_last_of_them_has_ended(tmp_path: Path) -> None:
    """As with --pid=host: they run on, so the container has not ended, and is watched on."""
    kernel = SimulatedKernel()

    def call(name: str, *arguments: Any) -> Any:
        return getattr(kernel, name)(*arguments)

    script = "sleep 60 >/dev/null & echo $!; read wait"
    command = ["unshare", "--mount", "sh", "-c", script]
    with (
        software_tpm() as tcti,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first,
    ):
        assert first.stdout is not None and first.stdin is not None
        other = int(first.stdout.readline())
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
        os.kill(other, signal.SIGKILL)
        while not later.rooms.lifecycle.process_ended(number):
            pass
        assert later.writer.live("box", "/bundles/box") is None
        later.tpm.close()


def candidate_number(agent: SimulatedAgent) -> int:
    container = agent.writer.live("box", "/bundles/box")
    assert container is not None
    return container.note.registration
