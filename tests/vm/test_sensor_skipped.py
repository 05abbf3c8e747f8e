"""A use that waits for its digest, where the kernel skips the program that is to send it once IMA
has looked: it is sent by the next program that its task comes to, which may be long after.

Needs root, the BPF LSM and IMA.
"""

import mmap
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from cima_runc.sensor import hooks, loader
from cima_runc.sensor.events import Event, Why
from cima_runc.sensor.loader import Sensor
from cima_runc.sensor.options import Options
from cima_runc.sensor.overdue import GAP_SECONDS, OVERDUE_SECONDS
from tests.vm.test_sensor import (
    Namespace,
    Watched,
    drain,
    install,
    map_executable,
    pins,
    registrations,
    uses,
    wait,
    wait_for,
)

__all__ = ["pins"]
pytestmark = pytest.mark.debian("13")


@pytest.fixture
def sensor(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sensor]:
    """A sensor whose programs the kernel skips that are called when IMA has looked."""

    def choose(arguments: hooks.Arguments, *, reads: bool) -> hooks.Choice:
        choice = hooks.choose(arguments, reads=reads)
        assert choice.late
        return replace(choice, programs=choice.programs - {"cima_ima_bprm", "cima_ima_mmap"})

    monkeypatch.setattr(loader, "choose", choose)
    with Sensor.load() as loaded:
        yield loaded


def use_and_go_on(container: Watched, file: Path, meanwhile: Callable[[], object]) -> list[Event]:
    """Have a task map a file and let go of it, and come to the next program after ``meanwhile``."""
    used, tell = os.pipe()
    held, go_on = os.pipe()

    def task() -> None:
        with file.open("rb") as opened:
            found = mmap.mmap(opened.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC)
        found.close()
        os.write(tell, b"!")
        os.read(held, 1)
        os.close(os.open("/dev/null", os.O_RDONLY))

    pid = container.start(task)
    os.read(used, 1)
    meanwhile()
    os.write(go_on, b"!")
    assert wait(pid) == 0
    for end in (used, tell, held, go_on):
        os.close(end)
    return [event for event in uses(drain(container.sensor)) if event.path == bytes(file)]


def test_it_is_sent_with_the_digest_of_what_was_used(sensor: Sensor, tmp_path: Path) -> None:
    container = Watched(sensor)
    digest = install(tmp_path / "lib", b"what ran")
    events = use_and_go_on(container, tmp_path / "lib", lambda: None)
    assert [(event.digest, event.why) for event in events] == [(digest, Why.STABLE)]
    container.close()


@pytest.mark.parametrize("how", ["written to", "replaced"])
def test_it_never_has_the_digest_of_what_came_after(
    sensor: Sensor, tmp_path: Path, how: str
) -> None:
    """The same file, hashed again; or others, of which one can be at the address of the first."""
    container = Watched(sensor)
    file = tmp_path / "lib"
    install(file, b"foreign code")
    digests = set()

    def meanwhile() -> None:
        if how == "replaced":
            file.unlink()
        for number in range(1 if how == "written to" else 64):
            other = file if how == "written to" else tmp_path / f"good{number}"
            digests.add(install(other, b"good code"))
            use_and_go_on(container, other, lambda: None)

    events = use_and_go_on(container, file, meanwhile)
    assert [event.why for event in events] != []
    assert not [event for event in events if event.digest in digests]
    assert Why.STABLE not in [event.why for event in events]
    container.close()


def test_what_waits_while_another_version_takes_over_is_sent(
    pins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newer one knows nothing of a use that began before it watched."""
    monkeypatch.setattr(loader, "_FINISH_SECONDS", 300.0)
    file = tmp_path / "large"
    file.touch()
    os.truncate(file, 128 << 20)  # a second or more to hash
    go, tell = os.pipe()
    container = Namespace()
    # Started first: a child would hold the lock of a sensor that is open.
    user = container.start(lambda: (os.read(go, 1), map_executable(file)))
    registration = next(registrations)
    with Sensor.open(pins, Options(ring_bytes=1 << 20)) as first:
        first.watch(container.number, registration, 1)
        os.write(tell, b"!")
        waits = partial(first._tables.row, registration)
        wait_for(lambda: (row := waits()) is not None and row.waiting > 0)
    with Sensor.open(pins, Options(ring_bytes=1 << 21)) as second:
        assert wait(user) == 0
        assert [event.path for event in uses(drain(second))] == [bytes(file)]
        assert second.lost() == {}
        second.unwatch(registration)
    container.close()


def test_what_is_not_sent_in_time_is_lost(pins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "_FINISH_SECONDS", 0.0)
    with Sensor.open(pins, Options(ring_bytes=1 << 20)) as first:
        container = Watched(first)
        row = first._tables.row(container.registration)
        assert row is not None
        first._tables.put_row(container.registration, row._replace(waiting=2), new=False)
    for size in (1 << 21, 1 << 22):
        with Sensor.open(pins, Options(ring_bytes=size)) as later:
            assert later.lost() == {container.registration: 2}
    with Sensor.open(pins, Options(ring_bytes=size)) as last:
        assert last.unwatch(container.registration).total == 2
    os.close(container.fd)


def test_what_is_not_sent_for_minutes_is_lost_before_the_end(
    sensor: Sensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the kernel says that it skipped what sends it."""
    container = Watched(sensor)
    row = sensor._tables.row(container.registration)
    assert row is not None
    sensor._tables.put_row(container.registration, row._replace(waiting=2), new=False)
    now, skipped = 1000.0, 0
    monkeypatch.setattr("time.monotonic", lambda: now)
    monkeypatch.setattr(sensor._tables, "unsent", lambda: skipped)

    def looks() -> list[dict[int, int]]:
        nonlocal now
        found = []
        for _ in range(int(OVERDUE_SECONDS / GAP_SECONDS) + 1):
            found.append(sensor.lost())
            now += GAP_SECONDS
        return found

    assert looks()[-1] == {}
    skipped = 1
    *before, last = looks()
    assert (before, last) == ([{}] * len(before), {container.registration: 2})
    assert sensor.unwatch(container.registration).total == 2
    os.close(container.fd)
