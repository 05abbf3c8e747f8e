"""Whatever comes after whatever, all that the agent knows of containers stays in step."""

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cima_runc.agent.candidate import Candidate
from cima_runc.agent.current import CurrentSettings
from cima_runc.agent.host_services import Look
from cima_runc.agent.index import Container
from cima_runc.agent.process import ContainerProcess, ProcessError
from cima_runc.agent.retention import Retention
from cima_runc.agent.rooms import open_rooms
from cima_runc.agent.sources import Sources
from cima_runc.base import clock
from cima_runc.base.errors import CimaError
from cima_runc.config import Settings, StorageSettings, parse_settings
from cima_runc.ml.records import parse_line, replay
from cima_runc.ml.store import ContainerNote, Store
from cima_runc.runtime.hook_state import HookState
from tests.support.simulated_agent import (
    NO_ROOTFS,
    SimulatedKernel,
    SimulatedProcess,
    SimulatedSensor,
)

names = st.sampled_from(["a", "b"])
bundles = st.sampled_from(["/x", "/y"])
mostly_not = st.sampled_from([False, False, True])


class ContainersInStep(RuleBasedStateMachine):
    """Register, measure, die, end, forget, remove, take over, with a disk that may be full."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(dir="/dev/shm"))
        self.kernel = SimulatedKernel()
        self.full = False
        self.pids = 100
        self.namespaces: dict[int, int] = {}
        """Mount namespace of each process."""

    def teardown(self) -> None:
        shutil.rmtree(self.root)

    def call(self, name: str, *arguments: Any) -> Any:
        return getattr(self.kernel, name)(*arguments)

    def examine(self, pid: int, *_: object, needs_cgroup: bool = True) -> ContainerProcess:
        if not self.kernel.is_alive(pid):
            raise ProcessError(f"process {pid} is gone")
        return SimulatedProcess(
            pid=pid,
            pidfd=os.open("/dev/null", os.O_RDONLY),
            mntns_fd=os.open("/dev/null", os.O_RDONLY),
            namespaces={"mnt": self.namespaces[pid]},
            cgroup="/box",
            cgroup_id=1,
            start_ticks=pid,
            is_init=True,
            kernel=self.call,
        )

    def find_again(self, note: ContainerNote, _: object) -> ContainerProcess | None:
        return self.examine(note.pid) if self.kernel.is_alive(note.pid) else None

    @initialize()
    def begin(self) -> None:
        self.open()

    def open(self) -> None:
        self.store = Store(self.root)
        self.store.prepare()
        append, write_note = self.store.append, self.store.write_note

        def checked(write: Any) -> Any:
            def call(*arguments: Any) -> None:
                if self.full:
                    raise OSError(28, "No space left on device")
                write(*arguments)

            return call

        self.store.append = checked(append)  # type: ignore[method-assign]
        self.store.write_note = checked(write_note)  # type: ignore[method-assign]
        self.rooms, _ = open_rooms(
            current=CurrentSettings(parse_settings({"state_dir": str(self.root)})),
            boot_id="boot",
            hooks_dir="/hooks",
            store=self.store,
            sources=Sources(None, SimulatedSensor(self.call), None),  # type: ignore[arg-type]
            held_dir=None,
            on_process=lambda registration, pidfd: None,
            on_progress=lambda: None,
            find_again=self.find_again,
        )
        self.writer = self.rooms.writer
        self.rooms.take_over()

    def attempt(self, work: Any) -> bool:
        try:
            work()
        except OSError:
            assert self.full
            return False
        return True

    def living(self) -> list[Container]:
        return [one for one in self.writer.containers if one.note.state != "stopped"]

    def one_of(self, data: st.DataObject) -> Container:
        return data.draw(st.sampled_from(self.living()))

    # -- what happens -------------------------------------------------------------------------

    @rule(name=names, bundle=bundles, again=st.booleans(), data=st.data(), full=mostly_not)
    def register(
        self, name: str, bundle: str, again: bool, data: st.DataObject, full: bool
    ) -> None:
        """A container starts; the kernel may give it the number of a namespace that is gone."""
        self.full = full
        self.pids += 1
        pid = self.pids
        held = {self.namespaces[one] for one in self.kernel.alive}
        gone = sorted(set(self.namespaces.values()) - held)
        self.namespaces[pid] = data.draw(st.sampled_from(gone)) if again and gone else pid
        self.kernel.start(pid)
        candidate = Candidate(
            HookState(id=name, bundle=bundle, pid=pid),
            {"process": {"args": ["/bin/sh"]}},
            self.examine(pid),
            NO_ROOTFS,
            Look(error="not looked for"),
        )
        # One of this name, whatever its bundle, is a run of the same line.
        before = [one for one in self.living() if one.note.id == name]
        blocked = any(self.kernel.is_alive(one.note.pid) for one in before)
        try:
            registered = self.attempt(lambda: self.rooms.registration.register(candidate))
        except CimaError as error:
            assert blocked, error
            registered = False
        assert not (registered and blocked)
        if registered:
            now = self.writer.live(name, bundle)
            assert now is not None and now.note.pid == pid
            assert now is self.writer.latest(name)
        else:
            self.kernel.exit(pid)

    @precondition(lambda self: self.living())
    @rule(data=st.data(), path=st.sampled_from([b"/bin/a", b"/bin/b", b"/bin/c"]))
    def run(self, data: st.DataObject, path: bytes) -> None:
        container = self.one_of(data)
        if self.kernel.is_alive(container.note.pid):
            self.kernel.execute(container.number, path)

    @precondition(lambda self: self.living())
    @rule(
        data=st.data(),
        told=st.sampled_from(["nothing", "died", "ended", "ended", "deleted"]),
        full=mostly_not,
    )
    def die(self, data: st.DataObject, told: str, full: bool) -> None:
        self.full = full
        container = self.one_of(data)
        lifecycle, note = self.rooms.lifecycle, container.note
        self.kernel.exit(note.pid)
        match told:
            case "died":
                lifecycle.process_died(container.number)
            case "ended":
                if self.attempt(lambda: lifecycle.process_ended(container.number)):
                    assert container.note.state == "stopped"
            case "deleted":
                state = json.dumps({"id": note.id, "bundle": note.bundle}).encode()
                self.attempt(lambda: lifecycle.poststop(state))

    @rule(full=mostly_not)
    def tick(self, full: bool) -> None:
        self.full = full
        self.attempt(lambda: self.rooms.commit(bind=True))
        self.rooms.forget_ended()

    @rule()
    def forget(self) -> None:
        self.writer.forget_ended(clock.since_boot())

    @rule()
    def remove(self) -> None:
        """The quota is none at all: all that has ended goes."""
        nothing = StorageSettings.model_construct(quota_mib=0, keep_days=0)
        current = CurrentSettings(Settings.model_construct(storage=nothing))
        runs = self.rooms.retention._runs
        self.attempt(Retention(current, "boot", self.writer, self.store, runs).apply)

    @precondition(lambda self: not self.full)
    @rule()
    def take_over(self) -> None:
        before = {one.note.pid: one.number for one in self.living()}
        self.open()
        for one in self.living():
            assert before[one.note.pid] == one.number
            assert self.kernel.is_alive(one.note.pid)

    # -- what is so at all times --------------------------------------------------------------

    @invariant()
    def views_show_what_is_there(self) -> None:
        index = self.writer._core._index
        for view in index._views:
            shown = [one.number for found in view._found.values() for one in found.values()]
            has_key = [one.number for one in index if view._key(one.note) is not None]
            assert sorted(shown) == sorted(has_key)
            for key, found in view._found.items():
                assert found and all(view._key(one.note) == key for one in found.values())
        assert set(index.changed) <= {one.number for one in index}
        assert all(len(found) == 1 for found in index.living._found.values())
        assert all(len(found) == 1 for found in index.namespaces._found.values())

    @invariant()
    def slots_are_those_of_containers(self) -> None:
        core = self.writer._core
        slots = [one.note.slot for one in core.containers]
        assert sorted(core._table._taken) == sorted(slots)

    @invariant()
    def nothing_is_queued_of_what_is_gone(self) -> None:
        known = {one.number for one in self.writer.containers}
        assert self.writer._ending <= known
        assert set(self.writer._ledger._unwritten) <= known

    @invariant()
    def what_is_on_disk_makes_the_register(self) -> None:
        queued = self.writer._ledger._unwritten
        for one in self.writer.containers:
            if one.number not in queued:
                records = (parse_line(line) for line in self.store.lines(one.number))
                assert replay(records) == (one.partition.cpcr, one.partition.count)

    @invariant()
    def what_is_watched_lives(self) -> None:
        assert set(self.kernel.rows) <= {one.number for one in self.living()}


TestContainersInStep = ContainersInStep.TestCase
TestContainersInStep.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
