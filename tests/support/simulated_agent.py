"""The agent's service on a simulated kernel: sensor and processes outlive it, as real ones do.

The kernel is in the test's process; the service runs in one of its own, so that it can be killed.
"""

import itertools
import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from cima_runc.agent.candidate import Candidate
from cima_runc.agent.current import CurrentSettings
from cima_runc.agent.host_services import Look
from cima_runc.agent.process import ContainerProcess, MarkOf, ProcessError, find_again
from cima_runc.agent.rooms import open_rooms
from cima_runc.agent.sources import Sources
from cima_runc.config import parse_settings
from cima_runc.ml.contents import Engine
from cima_runc.ml.store import ContainerNote, Store
from cima_runc.runtime.hook_state import HookState
from cima_runc.sensor.events import Event
from cima_runc.sensor.loader import Lost, Rights
from cima_runc.tpm.device import Tpm
from tests.support.sensor_events import event_of

NO_ROOTFS: dict[str, Any] = {
    "type": "rootfs",
    "mode": "off",
    "format": "mtree",
    "filesystem": "tree",
    "reason": "",
    "root": None,
    "layers": [],
}
"""The ``rootfs`` record of a container whose root filesystem is not measured."""


@dataclass
class SimulatedKernel:
    """What is in the kernel: the sensor's ring and tables, and which processes live."""

    capacity: int = 1000
    """Events for which the ring has room."""
    ring: list[Event] = field(default_factory=list)
    released: int = 0
    rows: dict[int, int] = field(default_factory=dict)
    """Registration -> events dropped."""
    ended: dict[int, int] = field(default_factory=dict)
    """The same of those that are watched no more, and not forgotten."""
    alive: set[int] = field(default_factory=set)
    ran: dict[int, set[bytes]] = field(default_factory=dict)
    """What ran in each container, as the test knows it."""
    waiting: dict[str, int] = field(default_factory=dict)
    """Containers whose hook waits for an answer: name -> first process."""
    running: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Those that were answered: name -> registration, first process."""
    marks: dict[int, int] = field(default_factory=dict)
    """Process -> the registration that the sensor has marked it with."""
    count: int = 0

    def mark_of(self, pid: int) -> int | None:
        return self.marks.get(pid)

    def start(self, pid: int) -> None:
        self.alive.add(pid)

    def exit(self, pid: int) -> None:
        self.alive.discard(pid)

    def is_alive(self, pid: int) -> bool:
        return pid in self.alive

    def ask_to_start(self) -> tuple[str, int]:
        """A runtime makes a container, whose hook will ask until it is answered."""
        self.count += 1
        name, pid = f"box-{self.count}", 1000 + self.count
        self.waiting[name] = pid
        self.start(pid)
        return name, pid

    def answered(self, name: str, registration: int) -> None:
        self.running[name] = (registration, self.waiting.pop(name))

    def containers(self) -> tuple[dict[str, int], dict[str, tuple[int, int]]]:
        return dict(self.waiting), dict(self.running)

    def stopped(self, name: str) -> None:
        self.exit(self.running.pop(name)[1])

    def execute(self, registration: int, path: bytes) -> None:
        """A file runs in a container; nobody hears of it where it is not watched."""
        if registration not in self.rows:
            return
        self.ran.setdefault(registration, set()).add(path)
        if len(self.ring) - self.released >= self.capacity:
            self.rows[registration] += 1
        else:
            self.ring.append(event_of(registration, path))

    def read(self, start: int, count: int) -> list[Event]:
        return self.ring[start : start + count]

    def position(self) -> tuple[int, int]:
        return self.released, len(self.ring)

    def release(self, position: int) -> None:
        self.released = position

    def watch(self, registration: int) -> None:
        assert registration not in self.rows
        self.rows[registration] = 0

    def unwatch(self, registration: int) -> int:
        self.ended[registration] = self.rows.pop(registration)
        return self.ended[registration]

    def forget(self, registration: int) -> None:
        self.ended.pop(registration, None)

    def tables(self) -> tuple[dict[int, int], dict[int, int]]:
        return dict(self.rows), dict(self.ended)

    def serve(
        self, channel: Connection, on_call: Callable[[int], None] = lambda call: None
    ) -> threading.Thread:
        """Answer one agent until it is gone; ``on_call`` is told of each call's number before.

        Not of those about marks: there is one for each process of the machine that this runs on.
        """

        def work() -> None:
            numbers = itertools.count(1)
            while True:
                try:
                    name, arguments = channel.recv()
                    if name != "mark_of":
                        on_call(next(numbers))
                    channel.send(getattr(self, name)(*arguments))
                except (EOFError, OSError):
                    return

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        return thread


class KernelCalls:
    """The kernel as an agent's process reaches it."""

    def __init__(self, channel: Connection) -> None:
        self._channel = channel

    def __call__(self, name: str, *arguments: object) -> Any:
        self._channel.send((name, arguments))
        return self._channel.recv()


class SimulatedSensor:
    """The sensor that is pinned in that kernel."""

    def __init__(self, kernel: Callable[..., Any]) -> None:
        self._kernel = kernel
        self._position = kernel("position")[0]

    def registrations(self) -> set[int]:
        return set(self._kernel("tables")[0])

    def watch(
        self,
        mntns: int,
        registration: int,
        cgroup_id: int,
        allowlist: int | None = None,
        rights: Rights = Rights(),  # noqa: B008 - frozen
    ) -> None:
        self._kernel("watch", registration)

    def unwatch(self, registration: int) -> Lost:
        return Lost(registration, self._kernel("unwatch", registration), 0)

    def mark_of(self, pidfd: int) -> int | None:
        with open(f"/proc/self/fdinfo/{pidfd}", encoding="ascii") as lines:
            pid = next((int(line.split()[1]) for line in lines if line.startswith("Pid:")), None)
        found: int | None = None if pid is None else self._kernel("mark_of", pid)
        return found

    def unwatched(self) -> dict[int, Lost]:
        return {number: Lost(number, n, 0) for number, n in self._kernel("tables")[1].items()}

    def forget(self, registration: int) -> None:
        self._kernel("forget", registration)

    def events(self, batch: int) -> Iterator[list[Event]]:
        end = self._kernel("position")[1]
        while self._position < end:
            found = self._kernel("read", self._position, min(batch, end - self._position))
            self._position += len(found)
            yield found

    def release(self) -> None:
        self._kernel("release", self._position)

    @property
    def missing_hooks(self) -> tuple[str, ...]:
        return ()

    def lost_in(self, registration: int) -> int | None:
        return None

    def lost(self) -> dict[int, int]:
        return {number: count for number, count in self._kernel("tables")[0].items() if count}


@dataclass(frozen=True)
class SimulatedProcess(ContainerProcess):
    """A container's first process."""

    kernel: Callable[..., Any] | None = None

    def alive(self) -> bool:
        assert self.kernel is not None
        return bool(self.kernel("is_alive", self.pid))

    def cgroup_populated(self) -> bool:
        return False


@dataclass
class SimulatedAgent:
    """One process of the agent."""

    root: Path
    tcti: str
    boot_id: str
    kernel: Callable[..., Any]
    settings: dict[str, Any] = field(default_factory=dict)
    tpm_seconds: float = 10.0

    def __post_init__(self) -> None:
        settings = parse_settings({"state_dir": str(self.root), **self.settings})
        self.tpm = Tpm.open(
            self.tcti, short_seconds=self.tpm_seconds, long_seconds=self.tpm_seconds
        )
        self.store = Store(self.root)
        self.store.lock()
        self.store.prepare()
        self.rooms, self.lobby = open_rooms(
            current=CurrentSettings(settings),
            boot_id=self.boot_id,
            hooks_dir="/hooks",
            store=self.store,
            sources=Sources(None, SimulatedSensor(self.kernel), self.tpm),  # type: ignore[arg-type]
            held_dir=None,
            on_process=lambda registration, pidfd: None,
            on_progress=lambda: None,
            find_again=self._find_again,
        )
        self.writer = self.rooms.writer

    def _examine(
        self, pid: int, container_id: str, cgroup: str | None, *, needs_cgroup: bool = True
    ) -> ContainerProcess:
        if not self.kernel("is_alive", pid):
            raise ProcessError(f"process {pid} is gone")
        return SimulatedProcess(
            pid=pid,
            pidfd=os.open("/dev/null", os.O_RDONLY),
            mntns_fd=os.open("/dev/null", os.O_RDONLY),
            namespaces={"mnt": pid},
            cgroup=f"/{container_id}",
            cgroup_id=1,
            start_ticks=pid,
            is_init=True,
            kernel=self.kernel,
        )

    def _find_again(self, note: ContainerNote, mark_of: MarkOf | None) -> ContainerProcess | None:
        with suppress(ProcessError):
            found = self._examine(note.pid, note.id, note.cgroup)
            if found.start_ticks == note.start_ticks:
                return found
            found.close()
        return find_again(note, mark_of)

    def start(self, name: str, pid: int) -> int:
        """Register a container, as its prestart hook asks for; returns its registration number."""
        self.kernel("start", pid)
        process = self._examine(pid, name, None)
        state = HookState(id=name, bundle=f"/bundles/{name}", pid=pid)
        config = {"process": {"args": ["/bin/sh"]}}
        rootfs = NO_ROOTFS
        look = Look(error="not looked for")
        self.rooms.registration.register(
            Candidate(state, config, process, rootfs, look, Engine(name=None))
        )
        container = self.writer.live(name, state.bundle)
        assert container is not None
        return container.note.registration

    def stop(self, name: str, pid: int) -> None:
        """A container's end, as its poststop hook tells of it."""
        self.kernel("exit", pid)
        self.rooms.lifecycle.poststop(
            json.dumps({"id": name, "bundle": f"/bundles/{name}"}).encode()
        )

    def registers(self) -> dict[int, tuple[int, str]]:
        """Count and cPCR of each container."""
        return {
            one.note.registration: (one.partition.count, one.partition.cpcr.hex())
            for one in self.writer.containers
        }
