"""Runs of lines as the agent registers them: restarts, starts that are refused, an upgrade."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cima_runc.agent.candidate import Candidate
from cima_runc.agent.core import CoreError
from cima_runc.agent.host_services import Look
from cima_runc.agent.index import Container
from cima_runc.agent.lifecycle import Lifecycle
from cima_runc.agent.registration import FIRST_RECORDS, LateError, RegistrationError
from cima_runc.agent.runs import LineInUseError
from cima_runc.base import clock, durable
from cima_runc.evidence.owner import generate, public_text
from cima_runc.ml import contents
from cima_runc.ml.contents import Adopted, Register, read
from cima_runc.ml.lines import line_name, line_of
from cima_runc.ml.partition import Partition
from cima_runc.ml.store import ContainerNote
from cima_runc.runtime.hook_state import HookState
from cima_runc.sensor.loader import SensorError
from tests.support.simulated_agent import NO_ROOTFS, SimulatedSensor
from tests.unit.agent.test_containers_in_step import ContainersInStep


class Host(ContainersInStep):
    """The agent of the state machine, driven by hand."""

    def candidate(self, name: str, **annotations: str) -> Candidate:
        self.pids += 1
        self.namespaces[self.pids] = self.pids
        self.kernel.start(self.pids)
        config = {"process": {"args": ["/bin/sh"]}, "annotations": annotations}
        return Candidate(
            HookState(id=name, bundle=f"/{name}", pid=self.pids),
            config,
            self.examine(self.pids),
            NO_ROOTFS,
            Look(error="not looked for"),
        )

    def start(self, name: str, **annotations: str) -> Container:
        self.rooms.registration.register(self.candidate(name, **annotations))
        found = self.writer.latest(name)
        assert found is not None
        return found

    def stop(self, container: Container) -> None:
        self.kernel.exit(container.note.pid)
        note = container.note
        state = json.dumps({"id": note.id, "bundle": note.bundle}).encode()
        self.rooms.lifecycle.poststop(state)

    def first(self, container: Container) -> Register:
        content = read(next(iter(self.store.records(container.number))))
        assert isinstance(content, Register)
        return content

    def types(self, number: int) -> list[Any]:
        return [record.content.get("type") for record in self.store.records(number)]


@pytest.fixture
def host() -> Iterator[Host]:
    made = Host()
    made.begin()
    yield made
    made.teardown()


def test_the_first_number_is_durable_with_the_first_records(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: set[Path] = set()
    really = durable.sync_directory

    def sync(path: Path) -> None:
        really(path)
        synced.add(path)

    monkeypatch.setattr(durable, "sync_directory", sync)
    note = host.start("box").note
    assert note.line is not None
    file = host.store.root / "lines" / f"{note.line}.json"
    assert {file, file.parent, host.store.root / "containers"} <= synced


def test_a_restart_is_the_next_run_and_names_the_one_before(host: Host) -> None:
    one = host.start("box")
    assert (host.first(one).run, host.first(one).previous) == (1, None)
    host.stop(one)
    two = host.start("box")
    register = host.first(two)
    assert (register.run, register.line.hex()) == (2, two.note.line)
    previous = register.previous
    assert isinstance(previous, contents.Previous)
    assert (previous.run, previous.registration) == (1, one.number)
    assert (previous.count, previous.cpcr) == (one.partition.count, one.partition.cpcr)
    assert previous.reason == "deleted"


def test_a_name_makes_another_id_the_next_run(host: Host) -> None:
    host.stop(host.start("one", **{"io.cima.name": "web"}))
    two = host.start("two", **{"io.cima.name": "web"})
    assert host.first(two).run == 2


def test_a_run_that_died_unseen_is_closed_first(host: Host) -> None:
    one = host.start("one", **{"io.cima.name": "web"})
    host.kernel.execute(one.number, b"/bin/late")
    host.kernel.exit(one.note.pid)
    two = host.start("two", **{"io.cima.name": "web"})
    assert host.types(one.number)[-2:] == [None, "exit"]
    previous = host.first(two).previous
    assert isinstance(previous, contents.Previous)
    assert previous.count == len(host.types(one.number))


def test_a_line_with_a_run_that_lives_is_refused_and_nothing_is_closed(host: Host) -> None:
    one = host.start("one", **{"io.cima.name": "web"})
    with pytest.raises(LineInUseError, match="one"):
        host.start("two", **{"io.cima.name": "web"})
    assert "exit" not in host.types(one.number)
    assert one.note.state != "stopped"
    assert host.store.registrations() == [one.number]


def test_two_of_a_line_that_come_together_are_two_one_after_the_other(host: Host) -> None:
    candidates = [host.candidate(name, **{"io.cima.name": "web"}) for name in ("one", "two")]
    candidates.append(host.candidate("other"))
    first, second, third = host.rooms.registration.register_all(candidates)
    assert (first, third) == (None, None)
    assert isinstance(second, LineInUseError)
    one = host.writer.latest("one")
    assert one is not None
    assert "exit" not in host.types(one.number)


def test_two_in_one_mount_namespace_that_come_together_are_two(host: Host) -> None:
    """Both have joined it by its path. Kind: of what is begun in the same turn, and is not held
    yet, it is asked whether it lives."""
    one, two = host.candidate("one"), host.candidate("two")
    two = replace(two, process=replace(two.process, namespaces=one.process.namespaces))
    first, second = host.rooms.registration.register_all([one, two])
    assert first is None
    assert isinstance(second, CoreError) and "belongs to container one" in str(second)
    found = host.writer.latest("one")
    assert found is not None and found.number in host.kernel.rows
    assert "exit" not in host.types(found.number)


def test_two_of_one_id_and_bundle_that_come_together_are_two(host: Host) -> None:
    """The bundle has another name for its line by now."""
    one, two = host.candidate("box"), host.candidate("box", **{"io.cima.name": "web"})
    first, second = host.rooms.registration.register_all([one, two])
    assert first is None
    assert isinstance(second, RegistrationError) and "is registered and alive" in str(second)
    found = host.writer.latest("box")
    assert found is not None and "exit" not in host.types(found.number)


def test_one_that_cannot_be_held_keeps_no_other_from_its_answer(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the agent has no descriptor left to wait for its end with."""
    lifecycle = host.rooms.lifecycle

    def watch(registration: int, _: int) -> None:
        found = host.writer.get(registration)
        if found is not None and found.note.id == "one":
            raise OSError(24, "Too many open files")

    monkeypatch.setattr(lifecycle, "_on_process", watch)
    candidates = [host.candidate(name) for name in ("one", "two")]
    first, second = host.rooms.registration.register_all(candidates)
    assert isinstance(first, OSError) and second is None
    one, two = host.writer.latest("one"), host.writer.latest("two")
    assert one is not None and two is not None
    assert lifecycle.held_registrations == {two.number}
    assert one.note.state == "stopped" and one.number not in host.kernel.rows


def test_what_is_made_in_a_container_of_roots_is_no_users(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Uid 1000 of a container without a user namespace is the host's user 1000."""
    roots = host.start("box")
    marks: list[int | None] = [roots.number]
    monkeypatch.setattr(SimulatedSensor, "mark_of", lambda *_: marks[0])

    def register(name: str) -> Container:
        host.rooms.registration.register(replace(host.candidate(name), uid=1000))
        found = host.writer.latest(name)
        assert found is not None
        return found

    with pytest.raises(RegistrationError, match="of the container box"):
        register("1000/nested")
    assert host.store.registrations() == [roots.number]
    marks[0] = None
    own = register("1000/own")
    for marks[0] in (own.number, 7):  # in a container of his own; of one that nobody knows any more
        register(f"1000/{marks[0]}")


@pytest.mark.parametrize("looks", [0, 1])
def test_who_waits_no_more_is_not_registered(host: Host, looks: int) -> None:
    """What it waited with may run by now, unmeasured: before it is watched, or when it just was."""
    answers = iter([True] * looks + [False] * 2)
    late = replace(host.candidate("box"), waits=lambda: next(answers))
    with pytest.raises(LateError, match="box"):
        host.rooms.registration.register(late)
    assert host.store.registrations() == []
    assert not host.kernel.rows
    assert host.first(host.start("box")).run == 1


def test_a_start_that_was_refused_skips_a_number(host: Host) -> None:
    host.stop(host.start("box"))
    host.full = True
    with pytest.raises(OSError, match="space"):
        host.start("box")
    host.full = False
    host.rooms.commit(bind=True)
    assert host.first(host.start("box")).run >= 3


def test_a_first_start_that_came_to_nothing_is_not_counted(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(host.store, "create", fails)
        with pytest.raises(OSError, match="space"):
            host.start("box")
    register = host.first(host.start("box"))
    assert (register.run, register.previous) == (1, None)


@pytest.mark.parametrize("runs", [0, 1, 2])
@pytest.mark.parametrize("kept", [True, False])
def test_no_run_goes_on_from_a_start_that_the_sensor_refused(
    host: Host, monkeypatch: pytest.MonkeyPatch, runs: int, *, kept: bool
) -> None:
    """Nothing of it ran, and there is nothing of it to show."""
    before = run_and_stop(host, runs, kept=kept)

    def fails(*_: Any) -> None:
        raise SensorError("the sensor watches as many namespaces as it can")

    with monkeypatch.context() as sensor:
        sensor.setattr(SimulatedSensor, "watch", fails)
        for _ in range(2):
            with pytest.raises(SensorError):
                host.start("box")
    assert_goes_on(host, before)


@pytest.mark.parametrize("runs", [0, 1, 2])
@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("records", range(FIRST_RECORDS))
def test_no_run_goes_on_from_a_registration_that_an_agent_did_not_complete(
    host: Host, runs: int, records: int, *, kept: bool
) -> None:
    """The agent was killed before the first records were durable; the hook asks the next one."""
    before = run_and_stop(host, runs, kept=kept)
    begun = host.start("box")
    path = host.store.root / f"containers/{begun.number:08d}" / "records.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:records]))
    host.open()
    assert not host.store.holds(begun.number)
    assert host.kernel.rows.keys() == set()
    host.kernel.exit(begun.note.pid)
    assert_goes_on(host, before)


def run_and_stop(host: Host, runs: int, *, kept: bool) -> Container | None:
    """Return the last of so many runs of a line."""
    last = None
    for _ in range(runs):
        last = host.start("box")
        host.stop(last)
    if not kept:
        host.remove()
    return last


def assert_goes_on(host: Host, before: Container | None) -> None:
    """The next run of the line goes on from that one, and shows no other."""
    register = host.first(host.start("box"))
    if before is None:
        assert (register.run, register.previous) == (1, None)
        return
    assert isinstance(register.previous, contents.Previous)
    said = register.previous
    partition = before.partition
    assert (said.registration, said.count, said.cpcr) == (
        *(before.number, partition.count, partition.cpcr),
    )
    found = host.writer.latest("box")
    assert found is not None
    shown = [host.store.read_note(number).run for number in host.writer.runs_of(found.note)]
    assert set(shown) <= {*range(1, said.run + 1), register.run}


def test_a_run_whose_partition_is_gone_is_remembered(host: Host) -> None:
    one = host.start("box")
    host.stop(one)
    count = len(host.types(one.number))
    host.remove()
    assert host.store.registrations() == []
    previous = host.first(host.start("box")).previous
    assert isinstance(previous, contents.Previous)
    assert (previous.run, previous.count, previous.reason) == (1, count, "deleted")


def test_a_partition_that_vanished_is_lost(host: Host) -> None:
    one = host.start("box")
    host.stop(one)
    host.store.discard(one.number)
    host.open()
    register = host.first(host.start("box"))
    assert (register.run, register.previous) == (2, "lost")


def test_an_agent_that_starts_anew_goes_on_with_the_line(host: Host) -> None:
    for _ in range(3):
        host.stop(host.start("box"))
    four = host.start("box")
    host.open()
    found = host.writer.get(four.number)
    assert found is not None and found.note.run == 4
    assert [one.number for one in host.writer.containers] == [four.number]
    assert len(host.writer.runs_of(found.note)) == 4


@pytest.mark.parametrize(
    ("lives", "last"), [("another", ["lost", "exit"]), ("first", ["exit"]), ("none", ["exit"])]
)
def test_who_is_left_behind_is_told_of_though_the_agent_was_killed_in_it(
    host: Host, monkeypatch: pytest.MonkeyPatch, lives: str, last: list[str]
) -> None:
    """Watched no more, and killed before that was written down. Kind: what is done is durable in
    the kernel, and what is to be said of it is not yet."""
    one = host.start("box")
    host.pids += 1
    pid = {"another": host.pids, "first": one.note.pid, "none": 0}[lives]
    host.namespaces[host.pids] = host.pids
    host.kernel.exit(one.note.pid)
    if pid:
        host.kernel.start(pid)
    host.kernel.unwatch(one.number)
    monkeypatch.setattr(host, "find_again", lambda *_: host.examine(pid) if pid else None)
    host.open()
    assert host.types(one.number)[FIRST_RECORDS + 1 :] == last


def test_an_upgrade_adopts_a_container_that_runs(host: Host) -> None:
    """Registered by an agent of version 1, whose note and records know no lines."""
    host.pids += 1
    pid = host.pids
    host.namespaces[pid] = pid
    host.kernel.start(pid)
    note = ContainerNote(
        registration=1234567,
        id="old",
        boot_id="boot",
        mntns=pid,
        cgroup="/box",
        pid=pid,
        start_ticks=pid,
        bundle="/old",
        slot=17,
        started="2025-01-01T00:00:00.000Z",
        state="running",
    )
    raw = note.model_dump(exclude={"line", "run"}, mode="json")
    partition = Partition("old")
    first = [
        contents.RegisterV1(
            id="old",
            boot_id="boot",
            registration=note.registration,
            cgroup="/box",
            namespaces={"mnt": pid},
            dependencies=None,
            missing=(),
        ),
        contents.Config(config={"annotations": {"io.cima.name": "web"}}),
        contents.parse_rootfs(NO_ROOTFS),
    ]
    host.store.create(note, b"s" * 32)
    host.store.append(note.registration, [partition.add(content, {}) for content in first])
    host.store.sync()
    path = Path(host.root) / "containers" / "01234567" / "container.json"
    path.write_text(json.dumps(raw))
    host.kernel.watch(note.registration)
    for _ in range(2):
        host.open()
        adopted = [
            content
            for record in host.store.records(note.registration)
            if isinstance(content := read(record), Adopted)
        ]
        line = line_of(0, [], line_name("old", {"io.cima.name": "web"}, contents.NO_ENGINE))
        assert [(one.line, one.run, one.previous) for one in adopted] == [(line, 1, "lost")]
        container = host.writer.get(note.registration)
        assert container is not None
        assert (container.note.line, container.note.run) == (line.hex(), 1)
        assert container.note.slot == 17
    host.stop(container)
    two = host.first(host.start("new", **{"io.cima.name": "web"}))
    assert two.run == 2
    assert isinstance(two.previous, contents.Previous)


@pytest.mark.parametrize("damage", ["container.json", "records.jsonl"])
def test_a_damaged_run_stops_neither_the_next_one_nor_retention(host: Host, damage: str) -> None:
    """A disk that gave back something else than was written: the run is lost, and said to be."""
    one = host.start("box")
    host.stop(one)
    path = host.store.root / f"containers/{one.number:08d}" / damage
    path.write_bytes(path.read_bytes().replace(b'"', b"'", 3))
    two = host.start("box")
    assert (host.first(two).run, host.first(two).previous) == (2, "lost")
    host.writer.discard(one.number)
    assert not host.store.holds(one.number)


def test_of_which_it_cannot_be_told_whether_it_lives_stops_no_other(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kind: what fails for one container ends the agent that starts, and with it all."""
    one, two = host.start("one"), host.start("two")
    really = host.find_again

    def fails(note: ContainerNote, mark_of: object) -> Any:
        if note.id == "one":
            raise OSError(24, "Too many open files")
        return really(note, mark_of)

    with monkeypatch.context() as system:
        system.setattr(host, "find_again", fails)
        host.open()
        host.rooms.commit(bind=True)
        assert host.rooms.lifecycle.held_registrations == {two.number}
        assert {one.number, two.number} == host.kernel.rows.keys()
        # None comes in its place meanwhile.
        with pytest.raises(RegistrationError, match="alive"):
            host.start("one")
    monkeypatch.setattr(host.rooms.takeover, "_find_again", really)
    host.rooms.commit(bind=True)
    assert host.rooms.lifecycle.held_registrations == {one.number, two.number}
    assert host.types(one.number)[FIRST_RECORDS + 1 :] == []
    host.stop(one)
    assert host.types(one.number)[-1] == "exit"


def test_one_that_the_sensor_cannot_watch_again_stops_no_other(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = host.start("one"), host.start("two")
    watch = SimulatedSensor.watch

    def fails(sensor: SimulatedSensor, mntns: int, number: int, *rest: Any) -> None:
        if number == one.number:
            raise SensorError("the sensor watches as many namespaces as it can")
        watch(sensor, mntns, number, *rest)

    monkeypatch.setattr(SimulatedSensor, "watch", fails)
    host.kernel.rows.clear()
    host.open()
    assert host.kernel.rows.keys() == {two.number}
    for each in (one, two):
        assert host.types(each.number)[FIRST_RECORDS + 1 :] == ["lost"]
    assert host.rooms.lifecycle.held_registrations == {one.number, two.number}


@pytest.mark.parametrize("damaged", ["", "container.json", "records.jsonl", "secret"])
def test_what_of_one_cannot_be_read_stops_no_agent(host: Host, damaged: str) -> None:
    one, two = host.start("one"), host.start("two")
    path = host.store.root / f"containers/{one.number:08d}" / damaged
    if damaged:
        path.unlink()
        path.mkdir()
    else:
        shutil.rmtree(path)
        path.touch()
    host.open()
    assert host.rooms.lifecycle.held_registrations == {two.number}


def test_a_container_that_is_watched_again_has_the_rights_that_it_began_with(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sensor was unloaded: else entries with more rights would be seen no more."""
    told: list[Any] = []
    watch = SimulatedSensor.watch

    def listening(sensor: SimulatedSensor, *arguments: Any) -> None:
        told.append(arguments[4])
        watch(sensor, *arguments)

    monkeypatch.setattr(SimulatedSensor, "watch", listening)
    candidate = host.candidate("box")
    process = {"args": ["/bin/sh"], "capabilities": {"bounding": ["CAP_KILL", "CAP_CHOWN"]}}
    config = {"process": process, "linux": {"seccomp": {"defaultAction": "SCMP_ACT_ERRNO"}}}
    host.rooms.registration.register(replace(candidate, config=config))
    host.kernel.rows.clear()
    host.open()
    assert len(told) == 2 and told[0] == told[1]
    assert told[1].bounding == 0b100001 and told[1].seccomp


def test_what_a_newer_agent_wrote_stops_no_older_one(host: Host) -> None:
    """As after a package that was put back: records of types that are not known here."""
    one = host.start("box")
    two = host.start("other")
    for container in (one, two):
        content = {"type": "of-later"}
        record = container.partition.add(content, {"time": "2026-01-01T00:00:00.000Z"})
        host.store.append(container.number, [record])
    host.store.sync()
    host.kernel.exit(two.note.pid)
    # Its end, too, is of a type of later.
    host.store.write_note(two.note.model_copy(update={"state": "stopped", "ended_ns": 2**62}))
    host.open()
    again = host.writer.latest("box")
    assert again is not None and again.number == one.number
    assert again.partition.cpcr == one.partition.cpcr
    assert one.number in host.kernel.rows  # watched on
    following = host.first(host.start("other")).previous
    assert isinstance(following, contents.Previous)
    assert (following.registration, following.reason) == (two.number, None)


def test_services_are_looked_for_behind_first_processes_that_live(host: Host) -> None:
    """The number of one that has ended may be a neighbour's, whose programs are nobody's else."""
    one = host.start("box")
    host.writer.update(one.number, dependencies=7)
    assert host.rooms.lifecycle.dependents() == {7: one.note.pid}
    host.kernel.exit(one.note.pid)
    assert host.rooms.lifecycle.dependents() == {}


def test_the_latest_of_an_id_is_so_after_a_clock_that_was_set_back(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two of one id, with other owners, the later is the container, whatever the clock said."""
    for year in (2030, 2020):
        monkeypatch.setattr(clock, "now", lambda: f"{year}-01-01T00:00:00.000Z")  # noqa: B023
        owner = public_text(generate()[1])
        latest = host.start("box", **{"io.cima.owner": owner})
        if year == 2030:
            host.stop(latest)
    host.open()
    again = host.writer.latest("box")
    assert again is not None and again.number == latest.number


def test_an_end_that_cannot_be_recorded_is_one_containers(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kind: what fails of one container stops the records and ends of all."""
    first, second = host.start("first"), host.start("second")
    host.kernel.exit(first.note.pid)
    host.kernel.exit(second.note.pid)
    really = Lifecycle.end

    def end(lifecycle: Lifecycle, container: Container, *given: Any, **more: Any) -> None:
        if container.number == first.number:
            raise SensorError("no container is watched so")
        really(lifecycle, container, *given, **more)

    with monkeypatch.context() as failing:
        failing.setattr(Lifecycle, "end", end)
        host.open()
        host.rooms.commit(bind=True)
        assert [one.number for one in host.living()] == [first.number]
    host.rooms.commit(bind=True)
    assert not host.living()
