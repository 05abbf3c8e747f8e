"""An agent's process in which one step of recording goes wrong.

A step is a call that changes a file below the state directory. The product has no fault points of
its own: the calls of :mod:`os` are replaced here, in a process that does nothing else.
"""

import errno
import itertools
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from cima_runc.base.errors import CimaError
from tests.support.simulated_agent import KernelCalls, SimulatedAgent

STEPS = ("write", "fdatasync", "fsync", "ftruncate", "replace", "mkdir", "open")
YEARS = 10 * 365 * 86_400 * 10**9
TAKE_ROOM = ("write", "mkdir", "open")
FAULTS: dict[str, tuple[str, ...]] = {
    "kill": STEPS,
    "torn": ("write",),
    "ENOSPC": TAKE_ROOM,
    "ENOSPC-on": TAKE_ROOM,
    "EIO": STEPS,
    "EROFS-on": STEPS,
    "clock-back": ("write",),
    "clock-on": ("write",),
}
"""Each fault and the steps that it can strike. The process is killed before the step, so after the
one before. ``torn``: a write is cut off by that. ``-on``: all steps from there on fail."""


@dataclass(frozen=True)
class Plan:
    """What goes wrong at which step; step -1: nothing does, steps are counted."""

    fault: str = ""
    step: int = -1


@dataclass(frozen=True)
class Job:
    """What the process is to do."""

    root: Path
    tcti: str
    boot_id: str
    plan: Plan = Plan()
    recover: bool = False
    """Only take over what an earlier process has left."""
    tpm_seconds: float = 10.0
    settings: tuple[tuple[str, Any], ...] = ()
    endless: bool = False
    """Go on until killed."""


class Faults:
    """Replaces the calls of :mod:`os`; ``steps`` are the names of those that there were."""

    def __init__(self, root: Path, plan: Plan) -> None:
        self._root = str(root)
        self._plan = plan
        self._lock = threading.Lock()
        self.steps: list[str] = []
        for name in STEPS:
            setattr(os, name, self._step(name, getattr(os, name)))

    def _step(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(target: Any, *rest: Any, **named: Any) -> Any:
            if not self._is_ours(target) or (name == "open" and not rest[0] & os.O_CREAT):
                return real(target, *rest, **named)
            with self._lock:
                number = len(self.steps)
                self.steps.append(name)
            fault, step = self._plan.fault, self._plan.step
            if step >= 0 and (number == step or (number > step and fault.endswith("S-on"))):
                real_call = lambda: real(target, *rest, **named)  # noqa: E731
                return self._go_wrong(name, real_call, target, rest)
            return real(target, *rest, **named)

        return call

    def _is_ours(self, target: Any) -> bool:
        name = os.readlink(f"/proc/self/fd/{target}") if isinstance(target, int) else target
        return os.fspath(name).startswith(self._root)

    def _go_wrong(self, name: str, real: Callable[[], Any], target: Any, rest: Any) -> Any:
        fault = self._plan.fault
        match fault:
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "torn":
                self._write_half(target, rest[0])
                os.kill(os.getpid(), signal.SIGKILL)
            case "clock-back" | "clock-on":
                shift = YEARS if fault == "clock-on" else -YEARS
                now = time.time_ns
                time.time_ns = lambda: now() + shift
                return real()
            case _:
                code = getattr(errno, fault.removesuffix("-on"))
                if name == "write" and code == errno.ENOSPC:
                    self._write_half(target, rest[0])
                raise OSError(code, os.strerror(code))
        return None

    def _write_half(self, handle: int, data: bytes) -> None:
        os.pwrite(handle, data[: len(data) // 2], os.fstat(handle).st_size)


def run(job: Job, kernel: Connection, tell: Connection) -> None:
    """Do the job and tell how it went: ("ack" | "refused", what was done, registers | reason)."""
    agent = SimulatedAgent(
        job.root,
        job.tcti,
        job.boot_id,
        KernelCalls(kernel),
        dict(job.settings),
        tpm_seconds=job.tpm_seconds,
    )
    faults = Faults(job.root, job.plan)

    def attempt(what: str, work: Callable[[], Any]) -> Any:
        try:
            result = work()
        except (CimaError, OSError) as error:
            tell.send(("refused", what, str(error)))
            return None
        tell.send(("ack", what, agent.registers()))
        return True if result is None else result

    if attempt("take over", agent.rooms.take_over):
        if job.recover:
            attempt("commit", lambda: agent.rooms.commit(bind=True))
        elif job.endless:
            _live_on(agent, attempt)
        else:
            _live(agent, attempt)
    agent.writer.compare() if job.recover else None
    value, status = agent.writer.expected_value, agent.writer.status
    gaps = status.gaps.count if status else 0
    pcr = agent.tpm.read_pcrs([12])[12].hex() if job.recover else ""
    tell.send(("end", faults.steps, (pcr, value.hex() if value else None, gaps)))
    os._exit(0)


def _live(agent: SimulatedAgent, attempt: Callable[[str, Callable[[], Any]], Any]) -> None:
    """Two containers, of which one ends."""

    def commit() -> None:
        agent.rooms.commit(bind=True)

    first = attempt("start a", lambda: agent.start("a", 101))
    if first:
        agent.kernel("execute", first, b"/bin/one")
        agent.kernel("execute", first, b"/bin/two")
    else:
        agent.kernel("exit", 101)
    attempt("commit", commit)
    second = attempt("start b", lambda: agent.start("b", 102))
    if second:
        agent.kernel("execute", second, b"/bin/one")
    else:
        agent.kernel("exit", 102)
    if first:
        agent.kernel("execute", first, b"/bin/three")
        attempt("stop a", lambda: agent.stop("a", 101))
    attempt("commit", commit)


def _live_on(agent: SimulatedAgent, attempt: Callable[[str, Callable[[], Any]], Any]) -> None:
    """Containers come, run programs and go; first those that an earlier agent left unanswered."""

    def start(name: str, pid: int) -> None:
        if number := attempt("start", lambda: agent.start(name, pid)):
            agent.kernel("answered", name, number)

    for name, pid in agent.kernel("containers")[0].items():
        start(name, pid)
    for turn in itertools.count():
        running = agent.kernel("containers")[1]
        match random.choice(("start", "execute", "execute", "commit", "stop")):
            case "start" if len(running) < 8:
                start(*agent.kernel("ask_to_start"))
            case "execute":
                for number, _ in running.values():
                    agent.kernel("execute", number, b"/bin/%d-%d" % (os.getpid(), turn))
            case "commit":
                attempt("commit", lambda: agent.rooms.commit(bind=True))
            case "stop" if running:
                name = random.choice(list(running))
                attempt("stop", lambda: agent.stop(name, running[name][1]))  # noqa: B023
                agent.kernel("stopped", name)
            case _:
                pass
